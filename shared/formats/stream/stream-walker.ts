import type { Checkpoint, SpanSegment } from '#shared/layer/layer-index.ts';

/** Where a span of the stream ends and the blob can be decoded from anew. */
export interface StreamCut {
  /** End of the span in the stream. */
  readonly streamOffset: number;
  /** Of the span that ends here. */
  readonly segments: readonly SpanSegment[];
  readonly checkpoint: Checkpoint | undefined;
}

/** Takes what a walker finds, in stream order, from within `push` and `end`. */
export interface WalkSink {
  /** A buffer to decode into. It is the walker's until it is handed to `data`. */
  buffer(): Buffer;
  /** The first `length` bytes of the last buffer are the stream's next ones. */
  data(buffer: Buffer, length: number): void;
  cut(cut: StreamCut): void;
  /**
   * The part of the blob at `blobOffset` that the last cuts name, their length 0, has this length; 0 = they stay without, and
   * skip nothing.
   */
  amend(blobOffset: number, blobLength: number): void;
}

/** Decodes a blob once from its front and finds the places where its spans begin; one for each way of compression. */
export interface StreamWalker extends Disposable {
  /** @throws LayerError when the blob is corrupt. */
  push(bytes: Uint8Array): void;
  /** @throws LayerError when the blob ends too early, or cannot be cut into spans (`unsupported`). */
  end(): void;
}

/** Of a buffer that `WalkSink.buffer` gives. */
export const WALK_BUFFER_BYTES = 256 * 1024;

/** More than the most that deflate can do, 1032, and far more than an honest zstd layer does. */
const MAX_RATIO = 2000;
/** So much may come out of a few bytes: a layer with one large file of zeros. */
const FREE_BYTES = 4 * 1024 * 1024 * 1024;

/** Whether a blob decodes to more than is plausible for its size. */
export function isBomb(decodedBytes: number, blobBytes: number): boolean {
  return decodedBytes > FREE_BYTES + blobBytes * MAX_RATIO;
}
