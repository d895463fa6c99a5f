import { createReadStream } from 'node:fs';
import { open, readFile, stat } from 'node:fs/promises';
import { Command } from 'commander';
import { parseImageConfig } from '#shared/containerd/image-records.ts';
import { digestOfHex, type Digest } from '#shared/digest/digest.ts';
import { buildLayerIndex, isSeekable } from '#shared/formats/build-index.ts';
import { indexFromZtoc } from '#shared/formats/soci/index-from-ztoc.ts';
import { readTocFromRegistry } from '#shared/indexes/build-from-registry.ts';
import { ClusterIndexes } from '#shared/indexes/cluster-indexes.ts';
import { RegistryIndexes } from '#shared/indexes/registry-indexes.ts';
import { SociIndexes } from '#shared/indexes/soci-indexes.ts';
import { decodeLayerIndex } from '#shared/layer/index-codec.ts';
import { LayerError, type LayerIndex } from '#shared/layer/layer-index.ts';
import { AllowedRepositories } from '#shared/registry/allowed-repositories.ts';
import { type Descriptor, MEDIA_TYPES } from '#shared/registry/manifest.ts';
import { formatPlatform } from '#shared/registry/platform.ts';
import { formatReference, type Reference } from '#shared/registry/reference.ts';
import type { FetchedImage, RegistryClient } from '#shared/registry/registry-client.ts';
import { byteText } from '../byte-text.ts';
import { fileDigest } from '../file-digest.ts';
import { withImage, type ImageAccess, type ImageFlags } from '../image-access.ts';
import { summaryOf, type IndexSummary } from '../index-summary.ts';
import { withRegistryOptions } from '../registry-access.ts';
import { table } from '../table.ts';
import { platformText } from '../option-values.ts';
import { untilInterrupted } from '../until-interrupted.ts';

interface LayerReport extends Partial<IndexSummary> {
  readonly digest: string;
  readonly mediaType: string;
  readonly sizeBytes: number;
  readonly format: string;
  /**
   * Where its index comes from: its own table of contents, the cluster, the registry, a SOCI index in the registry, this file; `none` = it
   * has to be built first.
   */
  readonly index: 'toc' | 'cluster' | 'registry' | 'soci' | 'file' | 'none';
  /** What will happen at the first start, and why. */
  readonly lazy: string;
}

class InspectError extends Error {
  override readonly name = 'InspectError';
  readonly code = 'not-found';
}

export function command(): Command {
  const inspectCommand = new Command('inspect')
    .summary('say what an image consists of, which layers will be lazy, and why the others will not')
    .argument(
      '<image or file>',
      'image in a registry; or a file: a layer blob, or an index that "kindling index -o" has written',
    )
    .option('--platform <os/arch>', 'platform to choose from an index (default: this machine)', platformText)
    .option('--nats <url>', 'NATS server of the cluster whose indexes count (default: $NATS_URL)');
  return withRegistryOptions(inspectCommand).action(async (target: string, flags: ImageFlags) => {
    await untilInterrupted(async (signal) => {
      const isFile = await stat(target).then(
        (found) => found.isFile(),
        () => false,
      );
      if (!isFile && /^[./]/.test(target)) throw new InspectError(`Cannot inspect ${target}: there is no such file`);
      if (isFile) await inspectFile(target, flags, signal);
      else await withImage(target, flags, signal, async (access) => await inspectImage(access, flags, signal));
    });
  });
}

async function inspectImage(
  { client, reference, platform, image, bus }: ImageAccess,
  flags: ImageFlags,
  signal: AbortSignal,
): Promise<void> {
  const referrers = await client.referrers(reference.repository, image.descriptor.digest, undefined, signal);
  const platforms =
    image.index?.parsed.kind === 'index'
      ? image.index.parsed.manifests.flatMap(({ platform: has, artifactType }) =>
          has && artifactType === undefined ? [formatPlatform(has)] : [],
        )
      : [];
  // Only looked at here, not used: whether an agent believes them is its own setting.
  const every = new AllowedRepositories(['*']);
  const pushed = new RegistryIndexes(client, every);
  const soci = new SociIndexes(client, every);
  const cluster = bus && new ClusterIndexes(bus);
  const layers: LayerReport[] = [];
  const diffIds = await diffIdsOf(client, reference, image, signal);
  for (const [at, layer] of image.parsed.layers.entries()) {
    layers.push(await reportOf(layer, diffIds[at], image, { client, reference, cluster, pushed, soci }, signal));
  }
  const report = {
    repository: reference.repository,
    digest: image.descriptor.digest,
    platform: formatPlatform(platform),
    platforms,
    sizeBytes: layers.reduce((sum, layer) => sum + layer.sizeBytes, 0),
    layers,
    referrers: referrers.map(({ digest, artifactType }) => ({ digest, artifactType: artifactType ?? '' })),
  };
  if (flags.json === true) {
    console.log(JSON.stringify(report));
    return;
  }
  console.log(`${report.repository}@${report.digest}`);
  console.log(`platform   ${report.platform}${platforms.length > 0 ? `  (of ${platforms.join(', ')})` : ''}`);
  console.log(`layers     ${layers.length}, ${byteText(report.sizeBytes)}`);
  console.log(layerTable(layers));
  for (const referrer of report.referrers) console.log(`referrer   ${referrer.artifactType}  ${referrer.digest}`);
}

/** Empty for what is no container image. */
async function diffIdsOf(
  client: RegistryClient,
  reference: Reference,
  { parsed: { config } }: FetchedImage,
  signal: AbortSignal,
): Promise<readonly Digest[]> {
  if (config.mediaType !== MEDIA_TYPES.ociConfig && config.mediaType !== MEDIA_TYPES.dockerConfig) return [];
  const bytes = await client.blob(reference.repository, config, signal);
  return parseImageConfig(bytes, formatReference(reference)).diffIds;
}

interface Places {
  readonly client: RegistryClient;
  readonly reference: Reference;
  readonly cluster: ClusterIndexes | undefined;
  readonly pushed: RegistryIndexes;
  readonly soci: SociIndexes;
}

async function reportOf(
  layer: Descriptor,
  diffId: Digest | undefined,
  image: FetchedImage,
  places: Places,
  signal: AbortSignal,
): Promise<LayerReport> {
  const { client, cluster, pushed, soci } = places;
  const { repository } = places.reference;
  const { digest, mediaType, size: sizeBytes, annotations = {} } = layer;
  const manifest = image.descriptor.digest;
  const base = { digest, mediaType, sizeBytes };
  const described = (index: LayerIndex, from: LayerReport['index'], lazy: string): LayerReport => ({
    ...base,
    ...summaryOf(index),
    index: from,
    lazy: `${lazy}${inOrder(index)}`,
  });
  try {
    const request = { layer: digest, repository, manifest, annotations };
    const shared = await cluster?.find(request, signal);
    const bytes = shared ?? (await pushed.find(request, signal));
    const index = bytes && decodeLayerIndex(bytes, digest);
    if (index?.diffId !== undefined && diffId !== undefined && index.diffId !== diffId) {
      const lazy = `no: its tar has the digest ${index.diffId}, the image's configuration says ${diffId}`;
      return { ...base, ...summaryOf(index), index: shared ? 'cluster' : 'registry', lazy };
    }
    const byToc = await readTocFromRegistry(client, places.reference, layer, signal);
    if (byToc) return described(index ?? byToc, 'toc', `yes, as it is; ${tarOf(byToc, index)}`);
    if (index && shared) return described(index, 'cluster', 'yes, index in the cluster');
    if (index) return described(index, 'registry', 'yes, index in the registry (where agents trust it)');
  } catch (error) {
    if (!(error instanceof LayerError)) throw error;
    return { ...base, format: formatOf(layer), index: 'none', lazy: `no: ${error.message}` };
  }
  let unusable = '';
  try {
    const found = await soci.find({ layer: digest, sizeBytes, repository, manifest, annotations }, signal);
    if (found) {
      const index = indexFromZtoc({ ...found, layer: digest, blobSize: sizeBytes });
      return described(
        index,
        'soci',
        'yes, SOCI index in the registry (where agents trust it); not shared between nodes',
      );
    }
  } catch (error) {
    if (!(error instanceof LayerError)) throw error;
    unusable = `; ${error.message}`;
  }
  const format = formatOf(layer);
  const lazy =
    format === 'unknown'
      ? `no: unknown media type ${mediaType}`
      : format === 'zstd'
        ? 'once indexed (kindling index), what lies inside a large frame in order; read in one pass until then'
        : 'once indexed (kindling index); read in one pass until then';
  return { ...base, format, index: 'none', lazy: `${lazy}${unusable}` };
}

/** What is known of the tar of a layer with a TOC. `index`: made by somebody who has read it. */
function tarOf(byToc: LayerIndex, index: LayerIndex | undefined): string {
  if (index?.diffId === undefined) return 'nobody has checked its tar (kindling index does)';
  return index.format === byToc.format
    ? 'its tar was checked'
    : 'where the index is found it is read by that, since its table of contents contradicts its tar';
}

function inOrder(index: LayerIndex): string {
  return isSeekable(index)
    ? ''
    : '; what lies inside a large zstd frame comes in order, as the blob is read from its front';
}

function formatOf({ mediaType }: Descriptor): string {
  if (mediaType.endsWith('gzip')) return 'gzip';
  if (mediaType.endsWith('zstd')) return 'zstd';
  return mediaType === MEDIA_TYPES.ociLayerTar || mediaType.endsWith('.tar') ? 'tar' : 'unknown';
}

async function inspectFile(path: string, flags: ImageFlags, signal: AbortSignal): Promise<void> {
  const { size } = await stat(path);
  let report: LayerReport;
  const index = await readIndex(path);
  if (index) {
    report = {
      digest: index.layer,
      mediaType: '',
      sizeBytes: index.blobSize,
      ...summaryOf(index),
      index: 'file',
      lazy: `yes, with this index of ${byteText(size)}${inOrder(index)}`,
    };
  } else {
    const digest = await fileDigest(path, signal);
    const base = { digest, mediaType: '', sizeBytes: size };
    try {
      await using file = await open(path, 'r');
      const source = {
        range: async (start: number, end: number) => {
          const bytes = Buffer.alloc(end - start);
          const { bytesRead } = await file.read(bytes, 0, bytes.length, start);
          return bytes.subarray(0, bytesRead);
        },
        stream: (ends: AbortSignal) => createReadStream(path, { signal: ends }) as AsyncIterable<Uint8Array>,
      };
      const built = await buildLayerIndex(source, { digest, size }, {}, signal);
      report = { ...base, ...summaryOf(built), index: 'none', lazy: `once indexed${inOrder(built)}` };
    } catch (error) {
      if (!(error instanceof LayerError)) throw error;
      report = { ...base, format: 'unknown', index: 'none', lazy: `no: ${error.message}` };
    }
  }
  console.log(flags.json === true ? JSON.stringify(report) : layerTable([report]));
}

/** undefined = it is no index. @throws LayerError when it is a damaged one */
async function readIndex(path: string): Promise<LayerIndex | undefined> {
  await using file = await open(path, 'r');
  const head = Buffer.alloc(64);
  const { bytesRead } = await file.read(head, 0, head.length, 0);
  if (bytesRead < head.length || head.toString('latin1', 0, 8) !== 'KNDLIDX\0') return undefined;
  return decodeLayerIndex(await readFile(path), digestOfHex(head.toString('hex', 32, 64)));
}

function layerTable(layers: readonly LayerReport[]): string {
  const head = ['LAYER', 'FORMAT', 'SIZE', 'SPANS', 'FIRST', 'LARGEST', 'FILES', 'LAZY'];
  const rows = layers.map((layer) => [
    layer.digest.slice(7, 19),
    layer.format,
    byteText(layer.sizeBytes),
    String(layer.spans ?? '-'),
    String(layer.prioritySpans ?? '-'),
    layer.largestSpanBytes === undefined ? '-' : byteText(layer.largestSpanBytes),
    String(layer.entries ?? '-'),
    layer.lazy,
  ]);
  return table(head, rows, [2, 3, 4, 5, 6]);
}
