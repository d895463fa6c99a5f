import {
  announcesToc,
  type BlobSource,
  buildLayerIndex,
  type BuildIndexOptions,
  indexByToc,
} from '#shared/formats/build-index.ts';
import { encodeLayerIndex } from '#shared/layer/index-codec.ts';
import type { LayerIndex } from '#shared/layer/layer-index.ts';
import type { Descriptor } from '#shared/registry/manifest.ts';
import type { Reference } from '#shared/registry/reference.ts';
import type { RegistryClient } from '#shared/registry/registry-client.ts';
import { findExternalToc } from './external-toc.ts';

export interface BuiltIndex {
  /** As `encodeLayerIndex` has it. */
  readonly bytes: Buffer;
  readonly index: LayerIndex;
}

export interface BuildOptions extends Pick<BuildIndexOptions, 'diffId' | 'onProgress' | 'onContradiction'> {
  /** Of the image that the layer is indexed for: an external TOC lies beside it. */
  readonly tag?: string | undefined;
}

/**
 * Builds the index of a layer's blob in a registry, for others to believe: from one pass over the blob. Where its descriptor vouches for
 * a TOC that says what the tar says, the spans are the TOC's.
 *
 * @throws RegistryError; LayerError, `digest-mismatch` when the blob is not what its digest says
 */
export async function buildFromRegistry(
  client: Pick<RegistryClient, 'readRange' | 'blobStream' | 'platformManifest' | 'blob'>,
  repository: string,
  layer: Descriptor,
  options: BuildOptions,
  signal: AbortSignal,
): Promise<BuiltIndex> {
  const source = {
    ...tocSource(client, repository, options.tag, layer),
    stream: (ends: AbortSignal) => client.blobStream(repository, layer, ends),
  };
  const index = await buildLayerIndex(source, layer, { ...options, toc: 'check' }, signal);
  return { bytes: encodeLayerIndex(index), index };
}

/**
 * The index of a layer in a registry from its TOC, in or outside of the blob; undefined where its descriptor announces none, or it cannot
 * be used.
 *
 * @throws RegistryError; LayerError
 */
export async function readTocFromRegistry(
  client: Pick<RegistryClient, 'readRange' | 'platformManifest' | 'blob'>,
  { repository, tag }: Pick<Reference, 'repository' | 'tag'>,
  layer: Descriptor,
  signal: AbortSignal,
): Promise<LayerIndex | undefined> {
  if (!announcesToc(layer)) return undefined;
  return await indexByToc(tocSource(client, repository, tag, layer), layer, signal);
}

function tocSource(
  client: Pick<RegistryClient, 'readRange' | 'platformManifest' | 'blob'>,
  repository: string,
  tag: string | undefined,
  { digest }: Descriptor,
): Required<Pick<BlobSource, 'range' | 'externalToc'>> {
  return {
    range: (start, end, signal) => client.readRange(repository, digest, start, end, signal),
    externalToc: (signal) => findExternalToc(client, repository, tag, digest, signal),
  };
}
