/**
 * How long readers wait for the agent that follows one that was killed with -9: one that reads what is on the disk, one whose reads
 * each cost a fetch.
 *
 *   npm run bench -- takeover [--images perl,ruby,php,nginx] [--kills 20] [--json FILE]
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { TestNode } from '#test/harness/node.ts';
import { ReadingProcess } from '#test/harness/reading-process.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { testImage } from '#test/images/image-cache.ts';
import { recipeOf } from '#test/images/recipe.ts';
import type { BenchValues } from './bench.ts';
import { lazyImage } from './lazy-image.ts';
import { printTable } from './table.ts';

export const title = 'readers while an agent that was killed is followed by the next one';
export const options = {
  images: { type: 'string', default: 'perl,ruby,php,nginx' },
  kills: { type: 'string', default: '20' },
} as const;

const FORMATS = ['optimized', 'estargz', 'zstd-chunked'] as const;
/** Larger than most spans: nearly each place that is read is a fetch of its own. */
const STRIDE_BYTES = 1536 * 1024;
/** Between two kills, so that what is measured is a node that had come to rest. */
const SETTLE_MS = 1_500;
/** Of /proc/PID/stat. */
const TICKS_PER_SECOND = 100;

interface LongRead {
  readonly startMs: number;
  readonly endMs: number;
}

interface TakeOver {
  /** From the kill to the start of the next agent's process. */
  readonly restartMs: number;
  /** From the start of that process to the first answer to each reader. */
  readonly hereMs: number;
  readonly missingMs: number;
  /** From the kill. */
  readonly stallMs: number;
  /** Processor time of the agent when it was ready for all that it does. */
  readonly cpuMs: number;
  readonly readyMs: number;
}

export async function run(values: BenchValues<typeof options>, signal: AbortSignal): Promise<unknown> {
  await using folder = await TempFolder.create('tk');
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  // Without completion in the background, what is missing stays so.
  await using node = await TestNode.start({ KINDLING_BACKGROUND: 'false' }, signal);
  const { kindling } = node;
  for (const name of values.images.split(',').map((text) => recipeOf(text).name)) {
    await registry.push(await testImage(name, signal), name, 'original', signal);
    for (const format of FORMATS) await kindling.pull(await lazyImage(name, format, registry, signal), signal);
  }
  const layers = await kindling.client.layers(signal);
  const images = layers.map(({ layer, imageSize }) => ({
    path: join(kindling.dataDir, 'fuse', `${layer.replace('sha256:', '')}.img`),
    imageSize,
  }));
  const missing = shuffled(
    images.flatMap(({ path, imageSize }) =>
      Array.from({ length: Math.floor(imageSize / STRIDE_BYTES) }, (_, i): [string, number] => [
        path,
        i * STRIDE_BYTES,
      ]),
    ),
  );
  await using hereReader = new LongReads(
    'here',
    images.map(({ path }): [string, number] => [path, 0]),
  );
  await using missingReader = new LongReads('missing', missing);
  await sleep(SETTLE_MS, undefined, { signal });

  const takeOvers: TakeOver[] = [];
  for (let kill = 0; kill < Number(values.kills); kill++) {
    const old = await kindling.agentPid();
    const killedMs = Date.now();
    await kindling.killAgent();
    await kindling.untilServing(old, signal);
    const pid = await kindling.agentPid();
    if (pid === undefined) throw new Error('There is no agent');
    const readyAt = Date.now();
    const { startMs, cpuMs } = await processTimes(pid);
    await sleep(SETTLE_MS, undefined, { signal });
    const first = (reads: readonly LongRead[]): LongRead | undefined => reads.find(({ endMs }) => endMs > startMs);
    const here = first(hereReader.take());
    const miss = first(missingReader.take());
    if (here === undefined || miss === undefined) continue;
    takeOvers.push({
      restartMs: startMs - killedMs,
      hereMs: here.endMs - startMs,
      missingMs: miss.endMs - startMs,
      stallMs: Math.max(here.endMs - here.startMs, miss.endMs - miss.startMs),
      cpuMs,
      readyMs: readyAt - startMs,
    });
  }
  hereReader.check();
  missingReader.check();
  console.log(`${layers.length} layers mounted, ${takeOvers.length} of ${values.kills} kills seen by both readers; ms`);
  const row = (name: string, of: (one: TakeOver) => number): string[] => {
    const sorted = takeOvers.map(of).toSorted((a, b) => a - b);
    const at = (share: number): string => String(Math.round(sorted[Math.ceil(share * sorted.length) - 1] ?? NaN));
    return [name, at(0.5), at(0.95), at(1)];
  };
  printTable(
    ['', 'median', '95 %', 'most'],
    [
      row('kill to the start of the next', (one) => one.restartMs),
      row('start to the answer from disk', (one) => one.hereMs),
      row('start to the answer that is fetched', (one) => one.missingMs),
      row('start to ready for containerd', (one) => one.readyMs),
      row('longest wait of a reader', (one) => one.stallMs),
      row('processor time until ready', (one) => one.cpuMs),
    ],
  );
  return { layers: layers.length, takeOvers };
}

class LongReads implements AsyncDisposable {
  readonly #process: ReadingProcess;
  readonly #reads: LongRead[] = [];

  constructor(mode: 'here' | 'missing', places: readonly (readonly [string, number])[]) {
    this.#process = ReadingProcess.start({
      script: '../bench/takeover-reader.ts',
      args: [mode],
      input: places.map((place) => `${JSON.stringify(place)}\n`).join(''),
      onLine: (line) => this.#reads.push(JSON.parse(line) as LongRead),
    });
  }

  /** Those since the last call. */
  take(): readonly LongRead[] {
    return this.#reads.splice(0);
  }

  check(): void {
    this.#process.check();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process[Symbol.asyncDispose]();
  }
}

/** When a process began, in ms since the epoch, to 10 ms, and what it has used of the processor. */
async function processTimes(pid: number): Promise<{ readonly startMs: number; readonly cpuMs: number }> {
  const [stat, uptime] = await Promise.all([readFile(`/proc/${pid}/stat`, 'utf8'), readFile('/proc/uptime', 'utf8')]);
  // Fields from the third one on; the second one, the name, may have blanks.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  const ms = (field: number): number => (Number(fields[field - 3]) * 1000) / TICKS_PER_SECOND;
  return { startMs: Date.now() - Number(uptime.split(' ')[0]) * 1000 + ms(22), cpuMs: ms(14) + ms(15) };
}

function shuffled<T>(items: readonly T[]): T[] {
  const left = [...items];
  return items.flatMap(() => left.splice(Math.floor(Math.random() * left.length), 1));
}
