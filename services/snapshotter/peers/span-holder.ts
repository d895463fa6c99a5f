import type { Digest } from '#shared/digest/digest.ts';

/** A layer of which this node has spans. */
export interface HeldLayer {
  readonly layer: Digest;
  readonly spanCount: number;
  /** Bitmap of the spans that are here, verified. */
  readonly residency: Uint8Array;
}

/** What sharing needs of the layers on this node. */
export interface SpanHolder {
  layers(): readonly HeldLayer[];
  get(layer: Digest): HeldLayer | undefined;
  has(layer: Digest, span: number): boolean;
  /** Payload of a span as SpanMap defines it; undefined when it is not here (any more). The bytes are the caller's. */
  readPayload(layer: Digest, span: number): Promise<Uint8Array | undefined>;
  /** Until it is here a span that is being fetched is as urgent as one that is read. Rejects when it does not come, or by the signal. */
  hurry(layer: Digest, span: number, signal: AbortSignal): Promise<void>;
  /** For each span that has been verified and kept; returns how to stop that. */
  onResident(listener: (layer: Digest, span: number) => void): () => void;
  /** For each layer that was evicted. */
  onRemoved(listener: (layer: Digest) => void): () => void;
}
