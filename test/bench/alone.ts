/**
 * What sharing costs a node that has nobody to share with: cold starts of a single node, embedded and as the only node of a cluster,
 * in turn. Each measurement has a containerd and an agent of its own, both empty.
 *
 *   npm run bench -- alone [--images perl,python] [--format gzip-indexed] [--rounds 5] [--json FILE]
 */
import { LinkProcess } from '#test/harness/link-process.ts';
import { TestNats } from '#test/harness/nats.ts';
import { TestRedis } from '#test/harness/redis.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { startService } from '#test/harness/service-process.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { testImage } from '#test/images/image-cache.ts';
import { recipeOf } from '#test/images/recipe.ts';
import type { BenchValues } from './bench.ts';
import { measureKindling, type ColdStart, type ColdStartCase, pushWarmUp } from './cold-start-node.ts';
import { lazyFormat, lazyImage } from './lazy-image.ts';
import { mebibytes, median, printTable, spreadSeconds } from './table.ts';

export const title = 'cold starts of one node, embedded against the only node of a cluster with sharing configured';
export const options = {
  images: { type: 'string', default: 'perl,python' },
  format: { type: 'string', default: 'gzip-indexed' },
  rounds: { type: 'string', default: '5' },
} as const;

interface Measured extends Pick<ColdStart, 'pullMs' | 'readyMs' | 'totalMs' | 'fetchedBytes'> {
  readonly image: string;
  readonly how: 'embedded' | 'peers';
  readonly round: number;
}

export async function run(values: BenchValues<typeof options>, signal: AbortSignal): Promise<unknown> {
  const format = lazyFormat(values.format);
  await using folder = await TempFolder.create('ab');
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  await using nats = await TestNats.start(folder.join('nats'), signal);
  await using redis = await TestRedis.start(signal);
  await using distributor = await startService(
    'distributor',
    { NATS_URL: nats.url, REDIS_URL: redis.url, KINDLING_DISTRIBUTOR_REGISTRIES: '*' },
    undefined,
    signal,
  );
  void distributor;
  const common = { KINDLING_TRUSTED_INDEXES: '*' };
  const envs = {
    embedded: common,
    peers: {
      ...common,
      NATS_URL: nats.url,
      KINDLING_PEER_LISTEN: '127.0.0.1:0',
      KINDLING_PEER_ADDRESS: '127.0.0.1',
      KINDLING_SUBSCRIBE: 'none',
    },
  };
  const warmUp = await pushWarmUp(registry, folder, signal);
  const measured: Measured[] = [];
  for (const image of values.images.split(',')) {
    await registry.push(await testImage(image, signal), image, 'original', signal);
    await lazyImage(image, format, registry, signal);
    for (let round = 0; round < Number(values.rounds); round++) {
      const order = round % 2 === 0 ? (['embedded', 'peers'] as const) : (['peers', 'embedded'] as const);
      for (const how of order) {
        await using link = await LinkProcess.start(registry.port, {}, signal);
        const one: ColdStartCase = {
          recipe: recipeOf(image),
          reference: `${link.host}/${image}:${format}`,
          chainId: '',
          warmUp,
          bytesDown: async () => await link.bytesDown(),
          readAll: false,
        };
        const { pullMs, readyMs, totalMs, fetchedBytes } = await measureKindling(one, envs[how], signal);
        measured.push({ image, how, round, pullMs, readyMs, totalMs, fetchedBytes });
        console.log(`${image} round ${round + 1} ${how}: ${(totalMs / 1000).toFixed(2)} s`);
      }
    }
  }
  report(measured);
  return { format, measured };
}

function report(measured: readonly Measured[]): void {
  const rows = [...new Set(measured.map(({ image }) => image))].flatMap((image) => {
    const of = (how: Measured['how']) => measured.filter((one) => one.image === image && one.how === how);
    const base = median(of('embedded').map(({ totalMs }) => totalMs));
    return (['embedded', 'peers'] as const).map((how) => {
      const runs = of(how);
      return [
        `${image} ${how}`,
        spreadSeconds(runs.map(({ pullMs }) => pullMs)),
        spreadSeconds(runs.map(({ readyMs }) => readyMs)),
        spreadSeconds(runs.map(({ totalMs }) => totalMs)),
        how === 'embedded' ? '' : (median(runs.map(({ totalMs }) => totalMs)) / base).toFixed(2),
        mebibytes(median(runs.map(({ fetchedBytes }) => fetchedBytes))),
      ];
    });
  });
  console.log('Seconds: median (least-most); x = of embedded');
  printTable(['', 'pull', 'ready', 'pull + ready', 'x', 'MiB fetched'], rows);
}
