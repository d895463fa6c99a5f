import type { Digest } from '#shared/digest/digest.ts';

/** How a layer is written anew. Sizes in bytes. */
export interface LayerWriterOptions {
  /** Largest run of a file that is compressed and verified alone. */
  readonly chunkSize?: number;
  /** Smaller files share a compressed part until it has this size; 0 = each file its own. */
  readonly minChunkSize?: number;
  readonly level?: number;
  /** Paths that a start reads, in that order; they come first in the layer. Those that a layer does not have are no error. */
  readonly prioritize?: readonly string[];
  /** Where a layer that must be put in another order is kept meanwhile. */
  readonly spoolFolder?: string;
}

export interface WrittenLayer {
  readonly digest: Digest;
  readonly sizeBytes: number;
  /** Digest of the tar that the new blob decompresses to. */
  readonly diffId: Digest;
  /** Of the descriptor: what a reader needs to find and check the table of contents. */
  readonly annotations: Readonly<Record<string, string>>;
}

/** Writes a layer's tar as a lazily readable blob, in one pass; `sink` takes the blob's bytes in order. */
export type LayerWriter = (
  tar: AsyncIterable<Uint8Array>,
  options: LayerWriterOptions,
  sink: (bytes: Uint8Array) => Promise<void>,
  signal: AbortSignal,
) => Promise<WrittenLayer>;
