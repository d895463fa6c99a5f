import { createHash, type Hash } from 'node:crypto';
import type { Digest } from '#shared/digest/digest.ts';
import type { IndexSpan, LayerEntry } from '#shared/layer/layer-index.ts';
import { TarReader } from '#shared/tar/tar-reader.ts';
import type { StreamCut } from './stream-walker.ts';

/** Takes the payload of a layer as it passes; nothing of it is verified before the whole blob is. */
export interface PayloadSink {
  /** Valid only during the call. `payloadOffset` counts the payload of all spans. */
  payload(bytes: Uint8Array, payloadOffset: number): void;
}

/** Reads the tar in a stream, and digests it: as a whole, and each span's payload. */
export class StreamDigester {
  readonly #reader: TarReader;
  readonly #sink: PayloadSink | undefined;
  readonly #diff: Hash = createHash('sha256');
  readonly #entries: LayerEntry[] = [];
  readonly #spans: IndexSpan[] = [];
  #extents: LayerEntry['extents'] = [];
  #extent = 0;
  #piece: Hash = createHash('sha256');
  #pieceLength = 0;
  #payloadLength = 0;
  #spanStart = 0;

  constructor(sink?: PayloadSink) {
    this.#sink = sink;
    this.#reader = new TarReader({
      entry: (entry) => {
        this.#entries.push(entry);
        this.#extents = entry.extents;
        this.#extent = 0;
      },
      payload: (bytes, streamOffset) => this.#payload(bytes, streamOffset),
    });
  }

  /** @throws LayerError where the stream is no tar. */
  data(bytes: Uint8Array): void {
    this.#diff.update(bytes);
    this.#reader.push(bytes);
  }

  /** Ends a span; all data before the cut must have been given, and none behind it. */
  cut(cut: StreamCut): void {
    const digest = `sha256:${this.#piece.digest('hex')}` as Digest;
    this.#spans.push({
      streamLength: cut.streamOffset - this.#spanStart,
      segments: cut.segments,
      pieces: this.#pieceLength === 0 ? [] : [{ length: this.#pieceLength, digest }],
      checkpoint: cut.checkpoint,
    });
    this.#spanStart = cut.streamOffset;
    this.#piece = createHash('sha256');
    this.#pieceLength = 0;
  }

  /** See WalkSink. */
  amend(blobOffset: number, blobLength: number): void {
    for (let at = this.#spans.length - 1; at >= 0; at -= 1) {
      const span = this.#spans[at];
      const last = span?.segments.at(-1);
      if (span === undefined || last === undefined || last.blobOffset !== blobOffset || last.blobLength !== 0) return;
      const amended = blobLength === 0 ? { ...last, skip: 0 } : { ...last, blobLength };
      this.#spans[at] = { ...span, segments: [...span.segments.slice(0, -1), amended] };
    }
  }

  /** @throws LayerError where the tar ends too early. */
  end(): {
    readonly diffId: Digest;
    readonly entries: readonly LayerEntry[];
    readonly spans: readonly IndexSpan[];
    readonly payloadLength: number;
  } {
    this.#reader.end();
    return {
      diffId: `sha256:${this.#diff.digest('hex')}` as Digest,
      entries: this.#entries,
      spans: this.#spans,
      payloadLength: this.#payloadLength,
    };
  }

  /** Of an entry's stored bytes, those that its extents cover. */
  #payload(bytes: Uint8Array, streamOffset: number): void {
    let at = 0;
    while (at < bytes.length) {
      const extent = this.#extents[this.#extent];
      if (extent === undefined) return;
      const inExtent = streamOffset + at - extent.streamOffset;
      if (inExtent < 0) at = Math.min(bytes.length, at - inExtent);
      else if (inExtent >= extent.length) this.#extent += 1;
      else {
        const length = Math.min(bytes.length - at, extent.length - inExtent);
        const part = bytes.subarray(at, at + length);
        this.#piece.update(part);
        this.#sink?.payload(part, this.#payloadLength);
        this.#pieceLength += length;
        this.#payloadLength += length;
        at += length;
      }
    }
  }
}
