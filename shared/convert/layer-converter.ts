import { hexOf, sha256, type Digest } from '#shared/digest/digest.ts';
import { type Descriptor, MEDIA_TYPES } from '#shared/registry/manifest.ts';
import type { RepositoryName } from '#shared/registry/reference.ts';
import type { RegistryClient } from '#shared/registry/registry-client.ts';
import { ConvertError } from './convert-error.ts';
import { ociLayerType } from './image-document.ts';
import { layerTar } from './layer-tar.ts';
import type { LayerWriter, LayerWriterOptions } from './layer-writer.ts';
import { SpoolFile } from './spool-file.ts';

export type ConvertFormat = 'estargz' | 'zstd-chunked';

/** What was done to a layer: written anew, taken as it was, or found from an earlier conversion. */
export type LayerAction = 'converted' | 'kept' | 'found';

export interface ConvertedLayer {
  readonly descriptor: Descriptor;
  readonly diffId: Digest;
  readonly action: LayerAction;
}

/** Of a converted layer's descriptor: the blob it was made of and how, so that it is not made twice. */
export const CONVERTED_FROM = 'dev.kindling.converted-from';

const TOC_DIGEST = 'containerd.io/snapshot/stargz/toc.digest';
const STARGZ_SIZE = 'io.containers.estargz.uncompressed-size';
const ZSTD_POSITION = 'io.github.containers.zstd-chunked.manifest-position';

export interface LayerConverterOptions {
  readonly client: RegistryClient;
  readonly writer: LayerWriter;
  readonly format: ConvertFormat;
  readonly source: RepositoryName;
  readonly target: RepositoryName;
  readonly writing: LayerWriterOptions;
  readonly spoolFolder: string;
  /** Layers of the image that the target's tag names now, by `CONVERTED_FROM`. */
  readonly earlier: ReadonlyMap<string, Pick<ConvertedLayer, 'descriptor' | 'diffId'>>;
}

/** Converts layers of one image (all its platforms): each blob once, however many platforms share it. */
export class LayerConverter {
  readonly #options: LayerConverterOptions;
  readonly #done = new Map<Digest, Promise<ConvertedLayer>>();
  readonly #recipe: string;

  constructor(options: LayerConverterOptions) {
    this.#options = options;
    const { chunkSize, minChunkSize, level, prioritize } = options.writing;
    const recipe = JSON.stringify([options.format, chunkSize ?? 0, minChunkSize ?? 0, level ?? 0, prioritize ?? []]);
    // The list of files may be long, an annotation should not.
    this.#recipe = `${options.format} ${hexOf(sha256(Buffer.from(recipe))).slice(0, 32)}`;
  }

  /** Leaves the layer in the target repository. `onBytes` counts the source blob's bytes as they are read. */
  convert(
    layer: Descriptor,
    diffId: Digest,
    onBytes: (bytes: number) => void,
    signal: AbortSignal,
  ): Promise<ConvertedLayer> {
    let work = this.#done.get(layer.digest);
    if (work === undefined) {
      work = this.#convert(layer, diffId, onBytes, signal);
      this.#done.set(layer.digest, work);
    }
    return work;
  }

  async #convert(
    layer: Descriptor,
    diffId: Digest,
    onBytes: (bytes: number) => void,
    signal: AbortSignal,
  ): Promise<ConvertedLayer> {
    const { client, target, format } = this.#options;
    if (this.#stays(layer)) {
      await this.#copy(layer, onBytes, signal);
      return { descriptor: { ...layer, mediaType: ociLayerType(layer.mediaType) }, diffId, action: 'kept' };
    }
    const from = `${layer.digest} ${this.#recipe}`;
    const earlier = this.#options.earlier.get(from);
    if (earlier !== undefined && (await client.blobExists(target, earlier.descriptor.digest, signal))) {
      return { ...earlier, action: 'found' };
    }
    await using spool = await SpoolFile.create(this.#options.spoolFolder);
    const tar = layerTar(counted(client.blobStream(this.#options.source, layer, signal), onBytes), signal);
    const writing = { ...this.#options.writing, spoolFolder: spool.folder };
    let written: Awaited<ReturnType<LayerWriter>>;
    try {
      written = await this.#options.writer(tar, writing, (bytes) => spool.write(bytes), signal);
    } catch (error) {
      // The format cannot say what this layer has: the layer is right as it is.
      if (!(error instanceof ConvertError && error.code === 'unsupported')) throw error;
      await this.#copy(layer, () => {}, signal);
      return { descriptor: { ...layer, mediaType: ociLayerType(layer.mediaType) }, diffId, action: 'kept' };
    }
    await spool.flush();
    const { digest, sizeBytes: size } = written;
    await client.uploadBlob(target, { digest, size }, () => spool.read(), signal);
    const descriptor = {
      mediaType: format === 'estargz' ? MEDIA_TYPES.ociLayerGzip : MEDIA_TYPES.ociLayerZstd,
      digest,
      size,
      annotations: { ...otherAnnotations(layer), ...written.annotations, [CONVERTED_FROM]: from },
    };
    return { descriptor, diffId: written.diffId, action: 'converted' };
  }

  /** In the wanted format already, or not ours to redistribute in another form. */
  #stays(layer: Descriptor): boolean {
    if (layer.urls !== undefined && layer.urls.length > 0) return true;
    if (this.#options.writing.prioritize !== undefined && this.#options.writing.prioritize.length > 0) return false;
    const { annotations } = layer;
    if (this.#options.format === 'zstd-chunked') return annotations?.[ZSTD_POSITION] !== undefined;
    return annotations?.[TOC_DIGEST] !== undefined && layer.mediaType.endsWith('gzip');
  }

  async #copy(layer: Descriptor, onBytes: (bytes: number) => void, signal: AbortSignal): Promise<void> {
    const { client, source, target } = this.#options;
    if (layer.urls !== undefined && layer.urls.length > 0) return;
    if (source === target || (await client.blobExists(target, layer.digest, signal))) return;
    if (await client.mountBlob(target, layer.digest, source, signal)) return;
    await client.uploadBlob(target, layer, () => counted(client.blobStream(source, layer, signal), onBytes), signal);
  }
}

/** What a layer's descriptor says beside its format, which is about to change. */
function otherAnnotations(layer: Descriptor): Record<string, string> {
  const formats = /^(?:containerd\.io\/snapshot\/stargz\/|io\.(?:github\.)?containers\.zstd-chunked\.)/;
  return Object.fromEntries(
    Object.entries(layer.annotations ?? {}).filter(
      ([key]) => !formats.test(key) && key !== STARGZ_SIZE && key !== CONVERTED_FROM,
    ),
  );
}

async function* counted(chunks: AsyncIterable<Buffer>, onBytes: (bytes: number) => void): AsyncGenerator<Buffer> {
  for await (const chunk of chunks) {
    onBytes(chunk.length);
    yield chunk;
  }
}
