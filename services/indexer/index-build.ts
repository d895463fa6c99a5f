import type { Descriptor } from '#shared/registry/manifest.ts';

export interface BuiltIndex {
  /** As `encodeLayerIndex` has it. */
  readonly bytes: Uint8Array;
  readonly format: string;
  readonly spans: number;
}

/**
 * Builds the index of a layer's blob.
 *
 * @throws RegistryError; LayerError `digest-mismatch` when the blob is not what its digest says, another code when the blob can have no
 * index
 */
export type BuildIndex = (
  repository: string,
  layer: Descriptor,
  options: { readonly onProgress?: (blobBytes: number) => void },
  signal: AbortSignal,
) => Promise<BuiltIndex>;
