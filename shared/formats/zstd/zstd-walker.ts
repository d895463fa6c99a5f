import { DecodeError, SyncDecoder } from '#shared/formats/sync-decoder.ts';
import { isBomb, type StreamWalker, WALK_BUFFER_BYTES, type WalkSink } from '#shared/formats/stream/stream-walker.ts';
import { LAYER_LIMITS, LayerError, type SpanSegment } from '#shared/layer/layer-index.ts';
import { type FramePart, ZstdFrames } from './zstd-frames.ts';

/** Decoded bytes after which a span ends with its frame. */
const SPAN_BYTES = 1024 * 1024;
/** A frame that decodes to more than this is cut inside, though each part must then be decoded from the frame's front. */
const INNER_SPAN_BYTES = 4 * 1024 * 1024;

/** A larger frame is fetched and decoded from its front for no part of it. */
const MAX_FRAME_BYTES = 2 * LAYER_LIMITS.spanBytes;

/**
 * Walks a zstd blob. Frames, or groups of small ones, are spans. A frame has no seek points: a large one is cut all the same, so that
 * its parts can be shared and verified, but each is decoded from the frame's front, and of a frame above `MAX_FRAME_BYTES` not at all.
 */
export class ZstdWalker implements StreamWalker {
  readonly #sink: WalkSink;
  readonly #frames = new ZstdFrames();
  readonly #decoder = new SyncDecoder('zstd');
  #output: Buffer;
  #length = 0;
  #streamOffset = 0;
  #blobBytes = 0;
  #spanStart = 0;
  #spanBlob = 0;
  #isInFrame = false;
  #frameBlob = 0;
  #frameStream = 0;
  #frameEnd = 0;
  /** Cuts inside the frame that is open, whose length is not known yet. */
  #innerCuts = 0;

  constructor(sink: WalkSink) {
    this.#sink = sink;
    this.#output = sink.buffer();
  }

  push(bytes: Uint8Array): void {
    this.#blobBytes += bytes.length;
    this.#orMalformed(() => {
      for (const part of this.#frames.push(Buffer.from(bytes))) this.#part(part);
    });
  }

  end(): void {
    this.#orMalformed(() => this.#frames.end());
    this.#flush();
    if (this.#streamOffset > this.#spanStart) this.#cut(this.#frameEnd);
  }

  #orMalformed(run: () => void): void {
    try {
      run();
    } catch (cause) {
      if (!(cause instanceof DecodeError)) throw cause;
      throw new LayerError('malformed', `the zstd blob is not valid before byte ${this.#blobBytes}: ${cause.message}`, {
        cause,
      });
    }
  }

  #part(part: FramePart): void {
    if (!this.#isInFrame) {
      this.#isInFrame = true;
      this.#frameBlob = part.offset;
      this.#frameStream = this.#streamOffset;
      if (this.#streamOffset === this.#spanStart) this.#spanBlob = part.offset;
    }
    let at = 0;
    for (;;) {
      if (this.#length === WALK_BUFFER_BYTES) this.#flush();
      const room = this.#roomInSpan();
      this.#decoder.write(part.bytes, at, part.bytes.length, this.#output, this.#length, this.#length + room);
      const { consumed, produced } = this.#decoder;
      at += consumed;
      this.#length += produced;
      this.#streamOffset += produced;
      if (this.#streamOffset - this.#spanStart === INNER_SPAN_BYTES) this.#cutInside();
      else if (produced < room && at === part.bytes.length) break;
      else if (consumed === 0 && produced === 0) throw new DecodeError('a frame ends before its last block');
    }
    if (part.isLast) this.#frameEnds(part.offset + part.bytes.length);
  }

  /** Decoded bytes up to the end of the buffer or of the span. */
  #roomInSpan(): number {
    return Math.min(WALK_BUFFER_BYTES - this.#length, this.#spanStart + INNER_SPAN_BYTES - this.#streamOffset);
  }

  #cutInside(): void {
    this.#flush();
    this.#cut(0);
    this.#innerCuts += 1;
  }

  #frameEnds(blobEnd: number): void {
    this.#isInFrame = false;
    this.#frameEnd = blobEnd;
    const isLarge = Math.max(this.#streamOffset - this.#frameStream, blobEnd - this.#frameBlob) > MAX_FRAME_BYTES;
    if (this.#innerCuts > 0) this.#sink.amend(this.#frameBlob, isLarge ? 0 : blobEnd - this.#frameBlob);
    const length = this.#streamOffset - this.#spanStart;
    if (length >= SPAN_BYTES || (this.#innerCuts > 0 && length > 0)) {
      this.#flush();
      this.#cut(blobEnd, isLarge);
    }
    this.#innerCuts = 0;
  }

  /** Ends the span here. `frameEnd` = 0 inside a frame. */
  #cut(frameEnd: number, isLarge = false): void {
    const segments: SpanSegment[] = [];
    const frameStart = Math.max(this.#frameStream, this.#spanStart);
    if (frameEnd > 0 && this.#innerCuts === 0) {
      const length = this.#streamOffset - this.#spanStart;
      segments.push({ blobOffset: this.#spanBlob, blobLength: frameEnd - this.#spanBlob, skip: 0, length });
    } else {
      const before = frameStart - this.#spanStart;
      if (before > 0) {
        segments.push({
          blobOffset: this.#spanBlob,
          blobLength: this.#frameBlob - this.#spanBlob,
          skip: 0,
          length: before,
        });
      }
      segments.push({
        blobOffset: this.#frameBlob,
        // 0 until the end of the frame is known.
        blobLength: frameEnd === 0 || isLarge ? 0 : frameEnd - this.#frameBlob,
        skip: isLarge ? 0 : frameStart - this.#frameStream,
        length: this.#streamOffset - frameStart,
      });
    }
    this.#sink.cut({ streamOffset: this.#streamOffset, segments, checkpoint: undefined });
    this.#spanStart = this.#streamOffset;
  }

  #flush(): void {
    if (this.#length === 0) return;
    // With each buffer: some bytes of what is pushed may decode to gigabytes.
    if (isBomb(this.#streamOffset, this.#blobBytes)) {
      throw new LayerError('too-large', `the zstd blob decodes to more than ${this.#streamOffset} bytes`);
    }
    this.#sink.data(this.#output, this.#length);
    this.#output = this.#sink.buffer();
    this.#length = 0;
  }

  [Symbol.dispose](): void {
    this.#decoder[Symbol.dispose]();
  }
}
