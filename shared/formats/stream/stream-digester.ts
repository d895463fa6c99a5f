import { createHash, type Hash } from 'node:crypto';
import type { Digest } from '#shared/digest/digest.ts';
import type { IndexSpan, LayerEntry, SpanPiece } from '#shared/layer/layer-index.ts';
import { packCheckpoint } from '#shared/layer/packed-checkpoint.ts';
import { TarReader, type TarSink } from '#shared/tar/tar-reader.ts';
import { ExtentCover } from './extent-cover.ts';
import type { StreamCut } from './stream-walker.ts';

/**
 * Payload up to which one digest goes. A reader that waits for a little of a span need not wait until all of it is decoded; so it is cheap
 * as well: some 0.03 % of the payload.
 */
const PIECE_BYTES = 128 * 1024;

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
  readonly #cover = new ExtentCover();
  #pieces: SpanPiece[] = [];
  #piece: Hash = createHash('sha256');
  #pieceLength = 0;
  #payloadLength = 0;
  #spanStart = 0;

  /** @param witness sees the tar as well */
  constructor(sink?: PayloadSink, witness?: Required<TarSink>) {
    this.#sink = sink;
    this.#reader = new TarReader({
      entry: (entry) => {
        this.#entries.push(entry);
        this.#cover.begin(entry.extents);
        witness?.entry(entry);
      },
      payload: (bytes, streamOffset) => {
        this.#cover.take(bytes, streamOffset, (part) => this.#payload(part));
        witness?.payload(bytes, streamOffset);
      },
    });
  }

  /** @throws LayerError where the stream is no tar. */
  data(bytes: Uint8Array): void {
    this.#diff.update(bytes);
    this.#reader.push(bytes);
  }

  /** Ends a span; all data before the cut must have been given, and none behind it. */
  cut(cut: StreamCut): void {
    if (this.#pieceLength > 0) this.#endPiece();
    this.#spans.push({
      streamLength: cut.streamOffset - this.#spanStart,
      segments: cut.segments,
      pieces: this.#pieces,
      checkpoint: cut.checkpoint === undefined ? undefined : packCheckpoint(cut.checkpoint),
    });
    this.#spanStart = cut.streamOffset;
    this.#pieces = [];
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

  #payload(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      const part = bytes.subarray(at, at + PIECE_BYTES - this.#pieceLength);
      this.#piece.update(part);
      this.#sink?.payload(part, this.#payloadLength);
      this.#pieceLength += part.length;
      this.#payloadLength += part.length;
      at += part.length;
      if (this.#pieceLength === PIECE_BYTES) this.#endPiece();
    }
  }

  #endPiece(): void {
    this.#pieces.push({ length: this.#pieceLength, digest: `sha256:${this.#piece.digest('hex')}` as Digest });
    this.#piece = createHash('sha256');
    this.#pieceLength = 0;
  }
}
