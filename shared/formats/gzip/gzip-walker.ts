import { crc32 } from 'node:zlib';
import { DecodeError, SyncDecoder } from '#shared/formats/sync-decoder.ts';
import { isBomb, type StreamWalker, type WalkSink } from '#shared/formats/stream/stream-walker.ts';
import { type Checkpoint, LAYER_LIMITS, LayerError } from '#shared/layer/layer-index.ts';
import { WINDOW_BYTES } from '#shared/layer/packed-checkpoint.ts';
import { type BlockInflater, type InflaterKind, openBlockInflater } from './block-inflater.ts';
import { probeCheckpoint } from './checkpoint-probe.ts';
import { gzipHeaderLength } from './gzip-header.ts';

/**
 * Decoded bytes of a span before a checkpoint inside a member is looked for. A window takes 1 to 2 KiB compressed, so that 1.5 MiB costs some
 * 0.2 to 0.4 % of the blob; of larger blobs the windows would take too much memory while they are indexed.
 */
function spanBytes(blobSize: number): number {
  const mebibytes = Math.ceil(blobSize / (512 * 1024 * 1024));
  return Math.min(4, Math.max(1.5, mebibytes)) * 1024 * 1024;
}
/** The same where a member begins, which needs no window. */
const MEMBER_SPAN_BYTES = 1024 * 1024;
/** The blob is decoded in pieces that do not depend on how it arrives, so that everybody sees the same boundaries. */
const INPUT_BYTES = 64 * 1024;
/** A boundary that is followed by so many compressed bytes, but by less than a window of output, is no place to take up the stream. */
const MAX_PROBE_BYTES = 4 * INPUT_BYTES;
const MAX_HEADER_BYTES = 128 * 1024;
const TRAILER_BYTES = 8;

/** A block boundary that becomes a checkpoint once enough of what follows has been seen. */
interface Candidate {
  /** Blob offset of the first byte that is wholly behind the boundary. */
  readonly blobOffset: number;
  readonly streamOffset: number;
  readonly window: Buffer;
  /** How many of the blob's bytes from `blobOffset - 1` on are in the probe buffer. */
  compressedLength: number;
}

type State = 'header' | 'deflate' | 'trailer' | 'padding';

/** Walks a gzip blob of any number of members. */
export class GzipWalker implements StreamWalker {
  readonly #sink: WalkSink;
  readonly #inflater: BlockInflater;
  readonly #prober = new SyncDecoder('deflate-raw');
  readonly #spanBytes: number;
  #state: State = 'header';
  /** Input that is not used up, from `#inputAt` on; `#inputOffset` is the blob offset of its start. */
  #input: Buffer = Buffer.allocUnsafe(INPUT_BYTES);
  #inputLength = 0;
  #inputOffset = 0;
  /** Header or trailer bytes that were split over inputs. */
  #partial: Buffer = Buffer.alloc(0);
  /** Output of the buffer being filled; the bytes before it that a window may need. */
  #output: Buffer;
  #outputLength = 0;
  readonly #history = Buffer.alloc(WINDOW_BYTES);
  readonly #window = Buffer.alloc(WINDOW_BYTES);
  #streamOffset = 0;
  #memberStart = 0;
  #crc = 0;
  #crcDone = 0;
  /** Of the span that is open. */
  #spanStream = 0;
  #spanBlob = 0;
  #checkpoint: Checkpoint | undefined = { bits: 0, window: Buffer.alloc(0) };
  /** End of the last deflate stream. */
  #deflateEnd = 0;
  #candidate: Candidate | undefined;
  readonly #probe = Buffer.allocUnsafe(MAX_PROBE_BYTES + 2 * INPUT_BYTES);
  #members = 0;

  constructor(sink: WalkSink, blobSize: number, inflater?: InflaterKind) {
    this.#sink = sink;
    this.#spanBytes = spanBytes(blobSize);
    this.#inflater = openBlockInflater(inflater);
    this.#output = sink.buffer();
  }

  push(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      const length = Math.min(bytes.length - at, INPUT_BYTES - this.#inputLength);
      this.#input.set(bytes.subarray(at, at + length), this.#inputLength);
      this.#inputLength += length;
      at += length;
      if (this.#inputLength === INPUT_BYTES) this.#consume();
    }
  }

  end(): void {
    this.#consume();
    if (this.#state === 'deflate' || this.#state === 'trailer' || this.#members === 0 || this.#partial.length > 0) {
      throw new LayerError('malformed', `the gzip blob ends inside a member, after ${this.#inputOffset} bytes`);
    }
    this.#flush();
    if (this.#streamOffset > this.#spanStream) this.#cut(this.#streamOffset, this.#deflateEnd);
  }

  /** Uses up the input. */
  #consume(): void {
    const input = this.#input.subarray(0, this.#inputLength);
    let at = 0;
    while (at < input.length) {
      switch (this.#state) {
        case 'header':
          at = this.#header(input, at);
          break;
        case 'deflate':
          at = this.#deflate(input, at);
          break;
        case 'trailer':
          at = this.#trailer(input, at);
          break;
        case 'padding':
          for (; at < input.length; at += 1) {
            if (input[at] !== 0) throw this.#malformed(at, 'bytes that belong to no gzip member');
          }
      }
    }
    this.#keepCompressed(input);
    this.#inputOffset += input.length;
    this.#inputLength = 0;
    if (isBomb(this.#streamOffset, this.#inputOffset)) {
      throw new LayerError('too-large', `the gzip blob decodes to more than ${this.#streamOffset} bytes`);
    }
  }

  #malformed(at: number, what: string, cause?: unknown): LayerError {
    return new LayerError('malformed', `the gzip blob has ${what} at byte ${this.#inputOffset + at}`, { cause });
  }

  #header(input: Buffer, at: number): number {
    if (this.#partial.length === 0 && this.#members > 0 && input[at] === 0) {
      this.#state = 'padding';
      return at;
    }
    const before = this.#partial.length;
    const bytes = before === 0 ? input.subarray(at) : Buffer.concat([this.#partial, input.subarray(at)]);
    const length = gzipHeaderLength(bytes);
    if (length === 'invalid') throw this.#malformed(at, 'no gzip header');
    if (length === undefined) {
      if (bytes.length > MAX_HEADER_BYTES) throw this.#malformed(at, `a header of more than ${MAX_HEADER_BYTES} bytes`);
      this.#partial = Buffer.from(bytes);
      return input.length;
    }
    this.#partial = Buffer.alloc(0);
    this.#members += 1;
    this.#state = 'deflate';
    this.#inflater.reset();
    this.#crc = 0;
    this.#crcDone = this.#outputLength;
    this.#memberStart = this.#streamOffset;
    const next = at + length - before;
    this.#memberBegins(this.#inputOffset + next);
    return next;
  }

  /** A member begins at `blobOffset`: the cheapest place for a checkpoint. */
  #memberBegins(blobOffset: number): void {
    if (this.#streamOffset === this.#spanStream) this.#spanBlob = blobOffset;
    else if (this.#streamOffset - this.#spanStream >= MEMBER_SPAN_BYTES) {
      this.#flush();
      this.#cut(this.#streamOffset, this.#deflateEnd);
      this.#spanBlob = blobOffset;
    } else return;
    this.#checkpoint = { bits: 0, window: Buffer.alloc(0) };
  }

  #deflate(input: Buffer, start: number): number {
    let at = start;
    /** A boundary that the last call may have stopped at; certain once the next call goes on from it. */
    let maybe: { readonly at: number; readonly streamOffset: number } | undefined;
    while (at < input.length) {
      if (this.#outputLength === this.#output.length) this.#flush();
      const isLooking = this.#candidate === undefined && this.#streamOffset - this.#spanStream >= this.#spanBytes;
      const outputStart = this.#outputLength;
      const outputEnd = this.#output.length;
      this.#inflate(input, at, outputEnd, isLooking);
      const { consumed, produced } = this.#inflater;
      if (consumed === 0 && produced === 0) {
        this.#deflateEnds(input, at);
        return at;
      }
      at += consumed;
      this.#streamOffset += produced;
      this.#outputLength = outputStart + produced;
      if (maybe !== undefined) this.#boundary(input, maybe.at, maybe.streamOffset);
      // It may have stopped at a boundary; where the input or the output ended just there it cannot be told.
      const isMaybe =
        isLooking && maybe === undefined && at > 0 && at < input.length && outputStart + produced < outputEnd;
      maybe = isMaybe && this.#streamOffset > this.#memberStart ? { at, streamOffset: this.#streamOffset } : undefined;
      this.#settle(input.subarray(0, at), WINDOW_BYTES);
    }
    return at;
  }

  #inflate(input: Buffer, at: number, outputEnd: number, untilBlock: boolean): void {
    try {
      this.#inflater.write(input, at, input.length, this.#output, this.#outputLength, outputEnd, untilBlock);
    } catch (cause) {
      if (cause instanceof DecodeError) throw this.#malformed(at, cause.message, cause);
      throw cause;
    }
  }

  /** The stream can perhaps be taken up at `at`; what follows will tell. It stays in a buffer of its own until then. */
  #boundary(input: Buffer, at: number, streamOffset: number): void {
    const start = this.#outputLength - (this.#streamOffset - streamOffset);
    this.#windowBefore(start, this.#window);
    this.#candidate = {
      blobOffset: this.#inputOffset + at,
      streamOffset,
      window: this.#window.subarray(Math.max(0, WINDOW_BYTES - (streamOffset - this.#memberStart))),
      compressedLength: input.copy(this.#probe, 0, at - 1),
    };
    const end = this.#outputLength;
    this.#outputLength = start;
    this.#flush(end);
  }

  /** Copies the 32 KiB of the stream before a place in the output buffer to `target`, which may be the history itself. */
  #windowBefore(end: number, target: Buffer): void {
    const fromBuffer = Math.min(end, WINDOW_BYTES);
    this.#history.copy(target, 0, fromBuffer);
    this.#output.copy(target, WINDOW_BYTES - fromBuffer, end - fromBuffer, end);
  }

  #keepCompressed(input: Buffer): void {
    const candidate = this.#candidate;
    if (candidate === undefined) return;
    // The input in which it was found is there from the start.
    if (candidate.blobOffset <= this.#inputOffset) {
      candidate.compressedLength += input.copy(this.#probe, candidate.compressedLength);
    }
    if (this.#inputOffset + input.length - candidate.blobOffset > MAX_PROBE_BYTES) this.#candidate = undefined;
  }

  /** Makes the candidate a checkpoint once `length` bytes behind it are known; `input` is the last of their blob bytes. */
  #settle(input: Buffer, length: number): void {
    const candidate = this.#candidate;
    if (candidate === undefined || this.#streamOffset - candidate.streamOffset < length) return;
    this.#candidate = undefined;
    if (candidate.blobOffset <= this.#inputOffset) {
      candidate.compressedLength += input.copy(this.#probe, candidate.compressedLength);
    }
    const start = this.#outputLength - (this.#streamOffset - candidate.streamOffset);
    const checkpoint = probeCheckpoint(
      {
        window: candidate.window,
        compressed: this.#probe.subarray(0, candidate.compressedLength),
        after: this.#output.subarray(start, start + length),
      },
      this.#prober,
    );
    if (checkpoint === undefined) return;
    this.#cut(candidate.streamOffset, candidate.blobOffset);
    this.#spanBlob = checkpoint.bits === 0 ? candidate.blobOffset : candidate.blobOffset - 1;
    this.#checkpoint = checkpoint;
  }

  #deflateEnds(input: Buffer, at: number): void {
    const candidate = this.#candidate;
    if (candidate !== undefined && this.#streamOffset > candidate.streamOffset) {
      this.#settle(input.subarray(0, at), Math.min(WINDOW_BYTES, this.#streamOffset - candidate.streamOffset));
    }
    this.#candidate = undefined;
    this.#deflateEnd = this.#inputOffset + at;
    this.#state = 'trailer';
  }

  #trailer(input: Buffer, at: number): number {
    const length = Math.min(TRAILER_BYTES - this.#partial.length, input.length - at);
    const bytes = Buffer.concat([this.#partial, input.subarray(at, at + length)]);
    if (bytes.length < TRAILER_BYTES) {
      this.#partial = bytes;
      return at + length;
    }
    this.#partial = Buffer.alloc(0);
    this.#sum();
    const size = (this.#streamOffset - this.#memberStart) % 2 ** 32;
    if (bytes.readUInt32LE(0) !== this.#crc || bytes.readUInt32LE(4) !== size) {
      throw this.#malformed(at, 'a member with a wrong checksum');
    }
    this.#state = 'header';
    return at + length;
  }

  /** Brings the member's checksum up to the end of the output. */
  #sum(): void {
    this.#crc = crc32(this.#output.subarray(this.#crcDone, this.#outputLength), this.#crc);
    this.#crcDone = this.#outputLength;
  }

  /** Hands on the output; what is behind it up to `end` goes to the front of the next buffer. */
  #flush(end = this.#outputLength): void {
    const length = this.#outputLength;
    const output = this.#output;
    if (length > 0) {
      if (this.#crcDone < length) this.#sum();
      this.#windowBefore(length, this.#history);
      this.#sink.data(output, length);
      this.#output = this.#sink.buffer();
    }
    this.#crcDone = 0;
    // A buffer keeps its bytes until it is written to again, and only this walker does that.
    this.#outputLength = length > 0 ? output.copy(this.#output, 0, length, end) : end;
  }

  /** Ends the span at `streamOffset`, whose last byte of the blob is before `blobEnd`. */
  #cut(streamOffset: number, blobEnd: number): void {
    const length = streamOffset - this.#spanStream;
    if (length > LAYER_LIMITS.spanBytes) {
      throw new LayerError(
        'unsupported',
        `the gzip blob has a run of ${length} bytes in which it cannot be taken up, at most ${LAYER_LIMITS.spanBytes}`,
      );
    }
    this.#sink.cut({
      streamOffset,
      segments: [{ blobOffset: this.#spanBlob, blobLength: blobEnd - this.#spanBlob, skip: 0, length }],
      checkpoint: this.#checkpoint,
    });
    this.#spanStream = streamOffset;
  }

  [Symbol.dispose](): void {
    this.#inflater[Symbol.dispose]();
    this.#prober[Symbol.dispose]();
  }
}
