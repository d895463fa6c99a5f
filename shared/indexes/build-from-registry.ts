import { buildLayerIndex, type BuildIndexOptions } from '#shared/formats/build-index.ts';
import { encodeLayerIndex } from '#shared/layer/index-codec.ts';
import type { LayerIndex } from '#shared/layer/layer-index.ts';
import type { Descriptor } from '#shared/registry/manifest.ts';
import type { RegistryClient } from '#shared/registry/registry-client.ts';

export interface BuiltIndex {
  /** As `encodeLayerIndex` has it. */
  readonly bytes: Buffer;
  readonly index: LayerIndex;
}

export type BuildOptions = Pick<BuildIndexOptions, 'diffId' | 'onProgress'>;

/**
 * Builds the index of a layer's blob in a registry: from its TOC where its descriptor vouches for one, else from one pass over the
 * blob.
 *
 * @throws RegistryError; LayerError, `digest-mismatch` when the blob is not what its digest says
 */
export async function buildFromRegistry(
  client: Pick<RegistryClient, 'readRange' | 'blobStream'>,
  repository: string,
  layer: Descriptor,
  options: BuildOptions,
  signal: AbortSignal,
): Promise<BuiltIndex> {
  const source = {
    range: (start: number, end: number, ends: AbortSignal) =>
      client.readRange(repository, layer.digest, start, end, ends),
    stream: (ends: AbortSignal) => client.blobStream(repository, layer, ends),
  };
  const index = await buildLayerIndex(source, layer, options, signal);
  return { bytes: encodeLayerIndex(index), index };
}
