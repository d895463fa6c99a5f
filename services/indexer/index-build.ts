import type { BuildOptions, BuiltIndex } from '#shared/indexes/build-from-registry.ts';
import type { Descriptor } from '#shared/registry/manifest.ts';

/**
 * Builds the index of a layer's blob.
 *
 * @throws RegistryError; LayerError `digest-mismatch` when the blob is not what its digest says, another code when the blob can have no
 * index
 */
export type BuildIndex = (
  repository: string,
  layer: Descriptor,
  options: BuildOptions,
  signal: AbortSignal,
) => Promise<Pick<BuiltIndex, 'bytes'> & { readonly index: Pick<BuiltIndex['index'], 'format' | 'spans'> }>;
