import type { Digest } from '#shared/digest/digest.ts';
import { MAX_COMPRESSED_TOC_BYTES } from '#shared/formats/toc/toc-tail.ts';
import { hostPlatform } from '#shared/registry/platform.ts';
import { parseReference, type RepositoryName } from '#shared/registry/reference.ts';
import type { RegistryClient } from '#shared/registry/registry-client.ts';
import { RegistryError } from '#shared/registry/registry-error.ts';

/** What the tag of a TOC image has more than that of its image. */
const TAG_SUFFIX = '-esgztoc';
const MAX_TAG_CHARS = 128;
/** On each blob of a TOC image: the digest of the layer it describes. */
const LAYER_ANNOTATION = 'containerd.io/snapshot/stargz/layer.digest';

/**
 * The TOC of an eStargz layer that lies outside of it: in the image `REPOSITORY:TAG-esgztoc` beside `REPOSITORY:TAG`, one blob for each
 * layer (https://github.com/containerd/stargz-snapshotter/blob/main/docs/estargz.md). An image that was named by digest alone has no tag,
 * so nothing says where its TOCs are. The layer's own descriptor vouches for the TOC; that is checked where it is read.
 *
 * @param tag of the image that the layer is read for
 * @returns the TOC as eStargz blobs have it, a tar in gzip; undefined where there is none
 * @throws RegistryError
 */
export async function findExternalToc(
  client: Pick<RegistryClient, 'platformManifest' | 'blob'>,
  repository: RepositoryName,
  tag: string | undefined,
  layer: Digest,
  signal: AbortSignal,
): Promise<Buffer | undefined> {
  if (tag === undefined || tag.length + TAG_SUFFIX.length > MAX_TAG_CHARS) return undefined;
  const reference = parseReference(`${repository}:${tag}${TAG_SUFFIX}`);
  try {
    const { parsed } = await client.platformManifest(reference, hostPlatform(), signal);
    const blob = parsed.layers.find(({ annotations }) => annotations?.[LAYER_ANNOTATION] === layer);
    if (blob === undefined) return undefined;
    return await client.blob(repository, blob, signal, { maxBytes: MAX_COMPRESSED_TOC_BYTES });
  } catch (error) {
    if (error instanceof RegistryError && error.code === 'not-found') return undefined;
    throw error;
  }
}
