import type { Digest } from '#shared/digest/digest.ts';
import { StreamIndexer } from '#shared/formats/stream/stream-indexer.ts';
import { indexFromToc } from '#shared/formats/toc/index-from-toc.ts';
import { TAIL_BYTES, tocFromTail } from '#shared/formats/toc/toc-tail.ts';
import { encodeLayerIndex } from '#shared/layer/index-codec.ts';
import { LayerError, type LayerIndex } from '#shared/layer/layer-index.ts';
import type { Descriptor } from '#shared/registry/manifest.ts';
import type { RegistryClient } from '#shared/registry/registry-client.ts';

export interface BuiltIndex {
  /** As `encodeLayerIndex` has it. */
  readonly bytes: Buffer;
  readonly index: LayerIndex;
  /** `toc`: from the end of the blob alone. `stream`: from all of it. */
  readonly from: 'toc' | 'stream';
}

export interface BuildOptions {
  /** Digest of the uncompressed tar as the image's configuration has it; checked where the whole blob is read. */
  readonly diffId?: Digest | undefined;
  /** Bytes of the blob that were read so far. */
  readonly onProgress?: (blobBytes: number) => void;
}

/**
 * Builds the index of a layer's blob: from its TOC where it has one that its descriptor vouches for, else from one pass over the
 * blob.
 *
 * @throws RegistryError; LayerError, `digest-mismatch` when the blob is not what its digest says
 */
export async function buildFromRegistry(
  client: Pick<RegistryClient, 'tail' | 'blobStream'>,
  repository: string,
  layer: Descriptor,
  options: BuildOptions,
  signal: AbortSignal,
): Promise<BuiltIndex> {
  const fromToc = await buildFromToc(client, repository, layer, signal);
  if (fromToc !== undefined) return { bytes: encodeLayerIndex(fromToc), index: fromToc, from: 'toc' };
  await using indexer = new StreamIndexer({ layer: layer.digest, blobSize: layer.size, diffId: options.diffId });
  let read = 0;
  for await (const part of client.blobStream(repository, layer, signal)) {
    await indexer.push(part);
    read += part.length;
    options.onProgress?.(read);
  }
  const index = await indexer.finish();
  return { bytes: encodeLayerIndex(index), index, from: 'stream' };
}

/** undefined = read all of the blob. */
async function buildFromToc(
  client: Pick<RegistryClient, 'tail'>,
  repository: string,
  layer: Descriptor,
  signal: AbortSignal,
): Promise<LayerIndex | undefined> {
  const annotations = layer.annotations ?? {};
  // Without an annotation that vouches for it a TOC is not believed: no need to look.
  if (!Object.keys(annotations).some((name) => /toc\.digest$|zstd-chunked/.test(name))) return undefined;
  let length = Math.min(layer.size, TAIL_BYTES);
  // Once for the guess, once for what the footer says.
  for (let attempt = 0; attempt < 2; attempt++) {
    const tail = await client.tail(repository, layer, length, signal);
    const found = tocFromTail({ tail, blobSize: layer.size, layer: layer.digest, annotations });
    if (found.kind === 'none') return undefined;
    if (found.kind === 'toc') {
      const { json, format, dataEnd } = found;
      try {
        return indexFromToc({ json, format, layer: layer.digest, blobSize: layer.size, dataEnd });
      } catch (error) {
        // A TOC without a digest for each chunk (legacy stargz): the blob itself says the same.
        if (error instanceof LayerError && error.code === 'unsupported') return undefined;
        throw error;
      }
    }
    length = layer.size - found.from;
  }
  return undefined;
}
