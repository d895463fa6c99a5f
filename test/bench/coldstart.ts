/**
 * Cold start, HelloBench style: every test image, from nothing on the node to ready, with overlayfs (pull all, unpack, start) and
 * with Kindling (pull lazily, start), in turn in one run. Each measurement has a containerd and an agent of its own, both empty.
 *
 *   npm run bench -- coldstart [--images python,node] [--formats optimized,estargz,zstd-chunked,gzip] [--rounds 3]
 *     [--networks none,1gbit-2ms,100mbit-20ms] [--no-read] [--json FILE]
 */
import { chainIds } from '#test/harness/chain-id.ts';
import { differences, walkTree } from '#test/harness/compare-trees.ts';
import { LinkProcess } from '#test/harness/link-process.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import type { Shape } from '#test/harness/shaped-proxy.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import type { TreeEntry } from '#test/harness/walk-tree.ts';
import { testImage } from '#test/images/image-cache.ts';
import { MANIFEST_TYPE, type Manifest } from '#test/images/oci-layout.ts';
import { RECIPES, recipeOf, type Recipe } from '#test/images/recipe.ts';
import type { BenchValues } from './bench.ts';
import {
  measureKindling,
  measureOverlayfs,
  type ColdStart,
  type ColdStartCase,
  pushWarmUp,
} from './cold-start-node.ts';
import { lazyFormat, lazyImage, type LazyFormat } from './lazy-image.ts';
import { mebibytes, median, printTable, spreadSeconds } from './table.ts';

export const title = 'pull and start of every test image, overlayfs against Kindling';
export const options = {
  images: { type: 'string', default: RECIPES.map((recipe) => recipe.name).join(',') },
  formats: { type: 'string', default: 'optimized,estargz' },
  networks: { type: 'string', default: 'none' },
  rounds: { type: 'string', default: '3' },
  'no-read': { type: 'boolean', default: false },
} as const;

const NETWORKS: Readonly<Record<string, Shape>> = {
  none: {},
  '1gbit-2ms': { bytesPerSecond: 125_000_000, delayMs: 1 },
  '100mbit-20ms': { bytesPerSecond: 12_500_000, delayMs: 10 },
};

type Config = 'overlayfs' | LazyFormat;
interface Measured extends ColdStart {
  readonly image: string;
  readonly config: Config;
  readonly network: string;
  readonly round: number;
  readonly imageBytes: number;
}

export async function run(values: BenchValues<typeof options>, signal: AbortSignal): Promise<unknown> {
  const chosen = parse(values);
  await using folder = await TempFolder.create('cb');
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  const measured: Measured[] = [];
  const warmUp = await pushWarmUp(registry, folder, signal);
  for (const recipe of chosen.recipes) {
    console.log(`${recipe.name}: preparing`);
    const prepared = await prepare(recipe, registry, chosen.configs, signal);
    let expected: ReadonlyMap<string, TreeEntry> | undefined;
    for (const network of chosen.networks) {
      for (let round = 0; round < chosen.rounds; round++) {
        for (const config of turn(chosen.configs, round)) {
          await using link = await LinkProcess.start(registry.port, NETWORKS[network] ?? {}, signal);
          const { repository, chainId, imageBytes } = prepared.get(config) ?? fail(config);
          const first = measured.every((m) => m.image !== recipe.name || m.config !== config);
          const measurement: ColdStartCase = {
            recipe,
            reference: `${link.host}/${repository}`,
            chainId,
            warmUp,
            bytesDown: async () => await link.bytesDown(),
            readAll: chosen.read && network === 'none',
            ...(first
              ? {
                  check: async (rootfs: string) => {
                    const tree = await walkTree(rootfs, signal);
                    expected ??= tree;
                    const wrong = differences(expected, tree, { mtimeRounded: true, ignoreTocFiles: true });
                    if (wrong.length > 0)
                      throw new Error(`${recipe.name} ${config}: wrong rootfs:\n${wrong.join('\n')}`);
                  },
                }
              : {}),
          };
          const result =
            config === 'overlayfs'
              ? await measureOverlayfs(measurement, signal)
              : await measureKindling(
                  measurement,
                  config.endsWith('-indexed') ? { KINDLING_TRUSTED_INDEXES: '*' } : {},
                  signal,
                );
          measured.push({ image: recipe.name, config, network, round, imageBytes, ...result });
          console.log(
            `  ${network} round ${round + 1} ${config}: pull ${(result.pullMs / 1000).toFixed(2)} s, ready ${(result.readyMs / 1000).toFixed(2)} s, ${mebibytes(result.fetchedBytes)} of ${mebibytes(imageBytes)} MiB`,
          );
        }
      }
    }
  }
  report(measured, chosen.networks);
  return { measured };
}

function fail(config: Config): never {
  throw new Error(`There is no image for ${config}`);
}

interface Prepared {
  readonly repository: string;
  readonly chainId: string;
  readonly imageBytes: number;
}

/** Pushes the image in every form that is measured. */
async function prepare(
  recipe: Recipe,
  registry: TestRegistry,
  configs: readonly Config[],
  signal: AbortSignal,
): Promise<Map<Config, Prepared>> {
  const prepared = new Map<Config, Prepared>();
  const original = await testImage(recipe.name, signal);
  await registry.push(original, recipe.name, 'original', signal);
  for (const config of configs) {
    const tag = config === 'overlayfs' ? 'original' : config;
    if (config !== 'overlayfs') await lazyImage(recipe.name, config, registry, signal);
    const image = await inspect(registry, recipe.name, tag, signal);
    prepared.set(config, { repository: `${recipe.name}:${tag}`, ...image });
  }
  return prepared;
}

async function inspect(
  registry: TestRegistry,
  name: string,
  tag: string,
  signal: AbortSignal,
): Promise<{ readonly chainId: string; readonly imageBytes: number }> {
  const base = `http://${registry.host}/v2/${name}`;
  const answer = await fetch(`${base}/manifests/${tag}`, { headers: { accept: MANIFEST_TYPE }, signal });
  const manifest = (await answer.json()) as Manifest;
  const config = (await (await fetch(`${base}/blobs/${manifest.config.digest}`, { signal })).json()) as {
    rootfs: { diff_ids: Parameters<typeof chainIds>[0] };
  };
  const chainId = chainIds(config.rootfs.diff_ids).at(-1) ?? '';
  return { chainId, imageBytes: manifest.layers.reduce((sum, layer) => sum + layer.size, 0) };
}

/** Another one first in each round, so that none always has the best place. */
function turn(configs: readonly Config[], round: number): Config[] {
  return configs.map((_, i) => configs[(i + round) % configs.length] ?? 'overlayfs');
}

function report(measured: readonly Measured[], networks: readonly string[]): void {
  for (const network of networks) {
    const here = measured.filter((m) => m.network === network);
    const rows: string[][] = [];
    for (const image of new Set(here.map((m) => m.image))) {
      const of = (config: Config): Measured[] => here.filter((m) => m.image === image && m.config === config);
      const base = of('overlayfs');
      for (const config of new Set(here.map((m) => m.config))) {
        const runs = of(config);
        const ratio = (key: 'totalMs' | 'droppedMs' | 'secondMs'): string => {
          const value = median(runs.map((m) => m[key])) / median(base.map((m) => m[key]));
          return config === 'overlayfs' || Number.isNaN(value) ? '' : value.toFixed(2);
        };
        const fetched = median(runs.map((m) => m.fetchedBytes));
        const peak = Math.max(...runs.map((m) => (m.agentPeakBytes ?? 0) + (m.keeperPeakBytes ?? 0)));
        const speeds = runs.flatMap((m) => m.readBytesPerSecond ?? []);
        rows.push([
          `${image} ${config}`,
          spreadSeconds(runs.map((m) => m.pullMs)),
          spreadSeconds(runs.map((m) => m.readyMs)),
          spreadSeconds(runs.map((m) => m.totalMs)),
          ratio('totalMs'),
          spreadSeconds(runs.map((m) => m.droppedMs)),
          ratio('droppedMs'),
          spreadSeconds(runs.map((m) => m.secondMs)),
          ratio('secondMs'),
          `${mebibytes(fetched)} of ${mebibytes(runs[0]?.imageBytes ?? 0)}`,
          speeds.length > 0 ? mebibytes(median(speeds)) : '',
          peak > 0 ? mebibytes(peak) : '',
        ]);
      }
    }
    console.log(`\nNetwork: ${network}. Seconds: median (least-most); x = of overlayfs`);
    printTable(
      [
        'image',
        'pull',
        'ready',
        'pull+ready',
        'x',
        'cache dropped',
        'x',
        'second',
        'x',
        'MiB fetched',
        'read MiB/s',
        'peak MiB',
      ],
      rows,
    );
  }
}

function parse(values: BenchValues<typeof options>) {
  const formats = values.formats.split(',').map(lazyFormat);
  const networks = values.networks.split(',');
  for (const name of networks) {
    if (NETWORKS[name] === undefined)
      throw new Error(`--networks: ${name} is none of ${Object.keys(NETWORKS).join(', ')}`);
  }
  return {
    recipes: values.images.split(',').map(recipeOf),
    configs: ['overlayfs', ...formats] satisfies Config[] as Config[],
    networks,
    rounds: Number(values.rounds),
    read: !values['no-read'],
  };
}
