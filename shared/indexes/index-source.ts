import type { Digest } from '#shared/digest/digest.ts';

export interface IndexRequest {
  readonly layer: Digest;
  readonly sizeBytes?: number;
  readonly mediaType?: string;
  /** `host[:port]/path` that the layer is pulled from. */
  readonly repository: string;
  /** Of the image that the layer is pulled for. */
  readonly manifest?: Digest;
  readonly annotations: Readonly<Record<string, string>>;
}

/** A place where somebody else's index of a layer may be found. */
export interface IndexSource {
  /**
   * The encoded index, or undefined where there is none. NOT verified beyond its place: who decodes it checks that it is whole and is
   * this layer's (`decodeLayerIndex`).
   */
  find(request: IndexRequest, signal: AbortSignal): Promise<Uint8Array | undefined>;
}
