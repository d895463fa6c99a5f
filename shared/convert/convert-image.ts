import { tmpdir } from 'node:os';
import { sha256, type Digest } from '#shared/digest/digest.ts';
import { type Descriptor, type ImageManifest, MEDIA_TYPES, type Platform } from '#shared/registry/manifest.ts';
import { choosePlatform, formatPlatform, runsOn } from '#shared/registry/platform.ts';
import { formatReference, type Reference } from '#shared/registry/reference.ts';
import type { FetchedManifest, RegistryClient } from '#shared/registry/registry-client.ts';
import { RegistryError } from '#shared/registry/registry-error.ts';
import { ConvertError } from './convert-error.ts';
import { configWith, indexWith, manifestWith, parseImageConfig } from './image-document.ts';
import {
  CONVERTED_FROM,
  type ConvertedLayer,
  type ConvertFormat,
  type LayerAction,
  LayerConverter,
} from './layer-converter.ts';
import type { LayerWriter } from './layer-writer.ts';
import { writerOf } from './layer-writers.ts';

export interface ConvertProgress {
  readonly platform: string;
  /** The layer as the source has it. */
  readonly layer: Digest;
  readonly bytesRead: number;
  readonly bytesTotal: number;
  /** undefined while it is being worked on. */
  readonly action: LayerAction | undefined;
}

export interface ConvertOptions {
  readonly source: Reference;
  readonly target: Reference;
  readonly client: RegistryClient;
  readonly format: ConvertFormat;
  /** One platform of an index gives a plain image; all, or several, an index. */
  readonly platforms: 'all' | readonly Platform[];
  /** Bytes; default by format. */
  readonly chunkSize?: number | undefined;
  readonly minChunkSize?: number | undefined;
  readonly level?: number | undefined;
  readonly prioritize?: readonly string[] | undefined;
  /** Where layers are kept between being written and uploaded; needs room for as many as are converted at a time. */
  readonly spoolFolder?: string | undefined;
  /** In place of the format's own. */
  readonly writer?: LayerWriter | undefined;
  readonly onProgress?: ((progress: ConvertProgress) => void) | undefined;
}

export interface ConvertedImage {
  readonly platform: string;
  readonly digest: Digest;
  readonly layers: readonly {
    readonly source: Digest;
    readonly target: Digest;
    readonly sourceBytes: number;
    readonly targetBytes: number;
    readonly action: LayerAction;
  }[];
}

export interface ConvertResult {
  /** Of what the target's tag names now. */
  readonly descriptor: Descriptor;
  readonly images: readonly ConvertedImage[];
}

/** Layers at a time: compressing keeps the cores busy, a second one hides the network. */
const LAYERS_AT_ONCE = 2;

/**
 * Converts an image from registry to registry. Layers that are in the format already are mounted or copied, those that an
 * earlier conversion to the same tag made are found again. Memory does not grow with the layers' size.
 *
 * Rejects with ConvertError or RegistryError. Nothing is tagged unless everything has been uploaded.
 */
export async function convertImage(options: ConvertOptions, signal: AbortSignal): Promise<ConvertResult> {
  const { client, source, target } = options;
  if (target.tag === undefined) {
    throw new ConvertError(
      'unsupported',
      `Cannot convert to ${formatReference(target)}: the target needs a tag, its digest is not known yet`,
    );
  }
  const fetched = await client.manifest(source, signal);
  const images = await imagesOf(fetched, options, signal);
  const { chunkSize, minChunkSize, level, prioritize } = options;
  const converter = new LayerConverter({
    client,
    writer: options.writer ?? writerOf(options.format),
    format: options.format,
    source: source.repository,
    target: target.repository,
    writing: {
      ...(chunkSize === undefined ? {} : { chunkSize }),
      ...(minChunkSize === undefined ? {} : { minChunkSize }),
      ...(level === undefined ? {} : { level }),
      ...(prioritize === undefined ? {} : { prioritize }),
    },
    spoolFolder: options.spoolFolder ?? tmpdir(),
    earlier: await earlierLayers(client, target, signal),
  });
  const results: ConvertedImage[] = [];
  const entries: Descriptor[] = [];
  for (const image of images) {
    const isOnly = images.length === 1 && (fetched.parsed.kind === 'image' || options.platforms !== 'all');
    const { descriptor, result } = await convertOne(image, isOnly ? target.tag : undefined, converter, options, signal);
    results.push(result);
    if (isOnly) return { descriptor, images: results };
    entries.push(descriptor);
  }
  const bytes = indexWith(fetched.bytes, entries);
  const descriptor = await client.putManifest(target.repository, target.tag, bytes, MEDIA_TYPES.ociIndex, signal);
  return { descriptor, images: results };
}

interface SourceImage {
  /** As the index has it; undefined where there is none. */
  readonly entry: Descriptor | undefined;
  readonly fetched: FetchedManifest;
  readonly manifest: ImageManifest;
}

async function imagesOf(
  fetched: FetchedManifest,
  options: ConvertOptions,
  signal: AbortSignal,
): Promise<SourceImage[]> {
  const { client, source } = options;
  if (fetched.parsed.kind === 'image') return [{ entry: undefined, fetched, manifest: fetched.parsed }];
  const images: SourceImage[] = [];
  for (const entry of chosenEntries(fetched.parsed.manifests, options)) {
    const image = await client.manifest({ ...source, tag: undefined, digest: entry.digest }, signal);
    if (image.parsed.kind !== 'image') {
      throw new ConvertError(
        'unsupported',
        `Cannot convert ${formatReference(source)}: its index names another index ${entry.digest}`,
      );
    }
    images.push({ entry, fetched: image, manifest: image.parsed });
  }
  return images;
}

/** Attestations and other artifacts belong to the image as it was: they are left out. */
function chosenEntries(manifests: readonly Descriptor[], options: ConvertOptions): readonly Descriptor[] {
  const real = manifests.filter(
    (entry) => entry.platform?.os !== 'unknown' && entry.annotations?.['vnd.docker.reference.type'] === undefined,
  );
  const wanted = options.platforms;
  const chosen =
    wanted === 'all'
      ? real
      : wanted.map((platform) => {
          const entry = choosePlatform(real, platform);
          if (entry !== undefined) return entry;
          const offered = real.flatMap((entry) => (entry.platform ? [formatPlatform(entry.platform)] : [])).join(', ');
          throw new ConvertError(
            'nothing-to-convert',
            `Cannot convert ${formatReference(options.source)}: it has no image for ${formatPlatform(platform)}, only for ${offered || 'none that is named'}`,
          );
        });
  if (chosen.length > 0) return [...new Set(chosen)];
  throw new ConvertError(
    'nothing-to-convert',
    `Cannot convert ${formatReference(options.source)}: its index names no image`,
  );
}

async function convertOne(
  image: SourceImage,
  tag: string | undefined,
  converter: LayerConverter,
  options: ConvertOptions,
  signal: AbortSignal,
): Promise<{ readonly descriptor: Descriptor; readonly result: ConvertedImage }> {
  const { client, source, target, onProgress } = options;
  const { manifest } = image;
  const what = `${formatReference(source)} (${image.fetched.descriptor.digest})`;
  const config = parseImageConfig(
    await client.blob(source.repository, manifest.config, signal),
    manifest.layers.length,
    what,
  );
  const platform = formatPlatform(image.entry?.platform ?? config);
  const wanted = options.platforms;
  if (image.entry === undefined && wanted !== 'all' && !wanted.some((one) => runsOn(config, one))) {
    throw new ConvertError(
      'nothing-to-convert',
      `Cannot convert ${formatReference(source)}: it is for ${platform}, not for ${wanted.map(formatPlatform).join(', ')}`,
    );
  }
  const layers = await inParallel(manifest.layers, signal, async (layer, index, signal) => {
    const diffId = config.diffIds[index] ?? layer.digest;
    let bytesRead = 0;
    const report = (action: LayerAction | undefined): void =>
      onProgress?.({ platform, layer: layer.digest, bytesRead, bytesTotal: layer.size, action });
    const done = await converter.convert(
      layer,
      diffId,
      (bytes) => {
        bytesRead += bytes;
        report(undefined);
      },
      signal,
    );
    report(done.action);
    return done;
  });
  const configBytes = configWith(
    config,
    layers.map((layer) => layer.diffId),
  );
  const configBlob = { digest: sha256(configBytes), size: configBytes.length };
  await client.uploadBlob(target.repository, configBlob, () => once(configBytes), signal);
  const bytes = manifestWith(
    image.fetched.bytes,
    { mediaType: MEDIA_TYPES.ociConfig, ...configBlob },
    layers.map((layer) => layer.descriptor),
  );
  const put = await client.putManifest(target.repository, tag ?? sha256(bytes), bytes, MEDIA_TYPES.ociManifest, signal);
  const { platform: entryPlatform, annotations } = image.entry ?? {};
  const result = {
    platform,
    digest: put.digest,
    layers: manifest.layers.map((layer, index) => resultOf(layer, layers[index])),
  };
  const descriptor = {
    ...put,
    ...(entryPlatform === undefined ? {} : { platform: entryPlatform }),
    ...(annotations === undefined ? {} : { annotations }),
  };
  return { descriptor, result };
}

function resultOf(layer: Descriptor, done: ConvertedLayer | undefined): ConvertedImage['layers'][number] {
  return {
    source: layer.digest,
    target: done?.descriptor.digest ?? layer.digest,
    sourceBytes: layer.size,
    targetBytes: done?.descriptor.size ?? layer.size,
    action: done?.action ?? 'kept',
  };
}

/** Layers of what the target's tag names now that say what they were made of. Not being there is no error. */
async function earlierLayers(
  client: RegistryClient,
  target: Reference,
  signal: AbortSignal,
): Promise<ReadonlyMap<string, Pick<ConvertedLayer, 'descriptor' | 'diffId'>>> {
  const found = new Map<string, Pick<ConvertedLayer, 'descriptor' | 'diffId'>>();
  try {
    const { parsed } = await client.manifest(target, signal);
    const manifests =
      parsed.kind === 'image'
        ? [parsed]
        : await Promise.all(
            parsed.manifests.map(
              async ({ digest }) => (await client.manifest({ ...target, tag: undefined, digest }, signal)).parsed,
            ),
          );
    for (const manifest of manifests) {
      if (manifest.kind !== 'image' || !manifest.layers.some((layer) => layer.annotations?.[CONVERTED_FROM])) continue;
      const bytes = await client.blob(target.repository, manifest.config, signal);
      const { diffIds } = parseImageConfig(bytes, manifest.layers.length, formatReference(target));
      for (const [index, descriptor] of manifest.layers.entries()) {
        const from = descriptor.annotations?.[CONVERTED_FROM];
        const diffId = diffIds[index];
        if (from !== undefined && diffId !== undefined) found.set(from, { descriptor, diffId });
      }
    }
  } catch (cause) {
    const isHarmless =
      cause instanceof ConvertError ||
      (cause instanceof RegistryError && !cause.retryable && cause.code !== 'cancelled');
    if (!isHarmless) throw cause;
  }
  return found;
}

/** Results in order; the first failure ends the others. */
async function inParallel<T, R>(
  items: readonly T[],
  signal: AbortSignal,
  work: (item: T, index: number, signal: AbortSignal) => Promise<R>,
): Promise<R[]> {
  const results: R[] = [];
  const failed = new AbortController();
  const both = AbortSignal.any([signal, failed.signal]);
  let next = 0;
  let failure: { readonly cause: unknown } | undefined;
  const lane = async (): Promise<void> => {
    for (let index = next++; index < items.length && failure === undefined; index = next++) {
      try {
        results[index] = await work(items[index] as T, index, both);
      } catch (cause) {
        failure ??= { cause };
        failed.abort();
      }
    }
  };
  await Promise.all(Array.from({ length: LAYERS_AT_ONCE }, lane));
  if (failure !== undefined) throw failure.cause;
  return results;
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}
