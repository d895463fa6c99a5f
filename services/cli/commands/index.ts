import { mkdtemp, rmdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Command } from 'commander';
import { hexOf } from '#shared/digest/digest.ts';
import { buildFromRegistry } from '#shared/indexes/build-from-registry.ts';
import { ClusterIndexes } from '#shared/indexes/cluster-indexes.ts';
import { RegistryIndexes } from '#shared/indexes/registry-indexes.ts';
import { LayerError } from '#shared/layer/layer-index.ts';
import { AllowedRepositories } from '#shared/registry/allowed-repositories.ts';
import type { Descriptor } from '#shared/registry/manifest.ts';
import { formatReference, type Reference } from '#shared/registry/reference.ts';
import type { RegistryClient } from '#shared/registry/registry-client.ts';
import { byteText } from '../byte-text.ts';
import { withImage, type ImageAccess, type ImageFlags } from '../image-access.ts';
import { summaryOf, type IndexSummary } from '../index-summary.ts';
import { makeFolder } from '../make-folder.ts';
import { platformText } from '../option-values.ts';
import { ProgressBar } from '../progress-bar.ts';
import { withRegistryOptions } from '../registry-access.ts';
import { table } from '../table.ts';
import { untilInterrupted } from '../until-interrupted.ts';

interface Flags extends ImageFlags {
  readonly push?: true;
  readonly output?: string;
}

interface IndexedLayer extends Partial<IndexSummary> {
  readonly layer: string;
  readonly sizeBytes: number;
  readonly indexBytes: number;
  readonly elapsedMs: number;
  /** Why the layer can have no index. */
  readonly reason?: string;
  /** In what its table of contents contradicts its tar, which the index is made from then. */
  readonly contradiction?: string;
}

export class OutputError extends Error {
  override readonly name = 'OutputError';
  readonly code = 'not-writable';
}

export function command(): Command {
  const indexCommand = new Command('index')
    .summary('build the layer indexes of an image, so that its layers can be read lazily as they are')
    .description(
      'Reads each layer once, and checks that a table of contents (eStargz, zstd:chunked) says what the layer holds. The indexes go to the ' +
        'cluster when --nats or NATS_URL names one, beside the image with --push, into files with --output; without any of them the command only reports.',
    )
    .argument('<image>', 'image to index')
    .option('--platform <os/arch>', 'platform to choose from an index (default: this machine)', platformText)
    .option('--nats <url>', 'NATS server of the cluster (default: $NATS_URL)')
    .option('--push', 'push the indexes beside the image, as an artifact that refers to it')
    .option('-o, --output <folder>', 'write each index to a file named after its layer');
  return withRegistryOptions(indexCommand).action(async (image: string, flags: Flags) => {
    await untilInterrupted(async (signal) => {
      // Before a layer is read for nothing.
      if (flags.output !== undefined) await prepare(flags.output);
      await withImage(image, flags, signal, async (access) => await index(access, flags, signal));
    });
  });
}

async function prepare(output: string): Promise<void> {
  try {
    await makeFolder(output);
    // Whether root may write is not told by the folder's mode.
    await rmdir(await mkdtemp(join(output, '.kindling-')));
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new OutputError(`Cannot write indexes to ${output}: it is no folder that can be written: ${why}`, { cause });
  }
}

async function index({ client, reference, image, bus }: ImageAccess, flags: Flags, signal: AbortSignal): Promise<void> {
  const layers = [...new Map(image.parsed.layers.map((layer) => [layer.digest, layer])).values()];
  const built: { layer: Descriptor['digest']; bytes: Buffer }[] = [];
  const reports: IndexedLayer[] = [];
  for (const [number, layer] of layers.entries()) {
    const what = `layer ${number + 1} of ${layers.length}, ${layer.digest.slice(7, 19)}`;
    const { report, bytes } = await indexLayer(client, reference, layer, what, signal);
    reports.push(report);
    if (!bytes) continue;
    built.push({ layer: layer.digest, bytes });
    if (bus) await new ClusterIndexes(bus).publish(layer.digest, bytes, signal);
    if (flags.output !== undefined) {
      await writeFile(join(flags.output, `${hexOf(layer.digest)}.index`), bytes);
    }
  }
  const published = [...(bus ? ['cluster'] : []), ...(flags.output === undefined ? [] : [flags.output])];
  if (flags.push && built.length > 0) {
    await new RegistryIndexes(client, new AllowedRepositories([])).publish(
      reference.repository,
      image.descriptor,
      built,
      signal,
    );
    published.push('registry');
  }
  print(flags, formatReference(reference), reports, published);
}

async function indexLayer(
  client: RegistryClient,
  { repository, tag }: Reference,
  layer: Descriptor,
  what: string,
  signal: AbortSignal,
): Promise<{ readonly report: IndexedLayer; readonly bytes?: Buffer }> {
  using bar = new ProgressBar();
  bar.show(0, layer.size, what);
  const started = performance.now();
  const common = () => ({ layer: layer.digest, sizeBytes: layer.size, elapsedMs: performance.now() - started });
  try {
    const onProgress = (read: number) => bar.show(read, layer.size, `${what}, ${byteText(layer.size)}`);
    let found: { readonly contradiction?: string } = {};
    const onContradiction = (contradiction: string): void => void (found = { contradiction });
    const options = { onProgress, onContradiction, tag };
    const { bytes, index } = await buildFromRegistry(client, repository, layer, options, signal);
    return { bytes, report: { ...common(), ...summaryOf(index), indexBytes: bytes.length, ...found } };
  } catch (error) {
    // A blob that is not what it claims to be is no answer, it is a failure.
    if (!(error instanceof LayerError) || error.code === 'digest-mismatch') throw error;
    return { report: { ...common(), indexBytes: 0, reason: error.message } };
  }
}

function print(flags: Flags, image: string, layers: readonly IndexedLayer[], published: readonly string[]): void {
  if (flags.json) {
    console.log(JSON.stringify({ image, published, layers }));
    return;
  }
  const head = ['LAYER', 'FORMAT', 'SIZE', 'SPANS', 'LARGEST', 'FILES', 'INDEX', 'SHARE', 'TIME'];
  const rows = layers.map((layer) => [
    layer.layer.slice(7, 19),
    layer.format ?? 'not lazy',
    byteText(layer.sizeBytes),
    String(layer.spans ?? '-'),
    layer.largestSpanBytes === undefined ? '-' : byteText(layer.largestSpanBytes),
    String(layer.entries ?? '-'),
    byteText(layer.indexBytes),
    `${((100 * layer.indexBytes) / Math.max(1, layer.sizeBytes)).toFixed(2)} %`,
    `${(layer.elapsedMs / 1000).toFixed(1)} s`,
  ]);
  console.log(table(head, rows, [2, 3, 4, 5, 6, 7, 8]));
  for (const layer of layers)
    if (layer.reason !== undefined) console.log(`${layer.layer.slice(7, 19)} cannot be lazy: ${layer.reason}`);
  for (const { layer, contradiction } of layers) {
    if (contradiction === undefined) continue;
    console.log(
      `${layer.slice(7, 19)} is indexed by its tar, which its table of contents contradicts: ${contradiction}`,
    );
  }
  console.log(
    published.length > 0
      ? `Published to: ${published.join(', ')}`
      : 'Not published: name a cluster with --nats, or use --push or --output',
  );
}
