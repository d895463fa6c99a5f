import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { TestContainerd } from '#test/harness/containerd.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { testImage } from '#test/images/image-cache.ts';
import { mebibytes, median, printTable, spreadSeconds } from './table.ts';

const execute = promisify(execFile);
const CLI = fileURLToPath(new URL('../../services/cli/main.ts', import.meta.url));
/** Of /proc/PID/stat, on every Linux that we run on. */
const TICK_MS = 10;
/** Of gzip, for both converters: ours takes it by itself, `ctr-remote` takes 9. */
const LEVEL = '6';

/** Times in milliseconds. */
interface Run {
  readonly wallMs: number;
  readonly cpuMs: number;
}

export interface Conversion {
  readonly name: string;
  readonly imageBytes: number;
  readonly runs: readonly Run[];
}

/**
 * What makes one image lazy, in turn: our indexes; our eStargz; `ctr-remote image convert --estargz`, which works on what it has
 * pulled before. Registry and containerd are on this machine; containerd's CPU counts with `ctr-remote`'s.
 */
export async function measureConversions(name: string, rounds: number, signal: AbortSignal): Promise<Conversion[]> {
  await using folder = await TempFolder.create('ic');
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  await using containerd = await TestContainerd.start({ folder: folder.join('c') }, signal);
  const image = await testImage(name, signal);
  const imageBytes = await image.layerBytes();
  const reference = await registry.push(image, name, 'original', signal);
  await containerd.pull(reference, 'overlayfs', signal);
  const kindling = [process.execPath, '--disable-warning=ExperimentalWarning', CLI];
  const remote = ['ctr-remote', '--address', containerd.address, '--namespace', 'test', 'images'];
  // Each conversion goes into a repository of its own: what is there already would be found.
  const theirs = (target: string, ...level: readonly string[]) => {
    return [...remote, 'convert', '--oci', '--estargz', ...level, reference, registry.reference(target)];
  };
  const commands: Readonly<Record<string, (round: number) => readonly string[]>> = {
    'kindling index': () => [...kindling, 'index', reference, '--json'],
    [`kindling convert, level ${LEVEL}`]: (round) => {
      const target = registry.reference(`ours-${round}`);
      return [...kindling, 'convert', reference, target, '--format', 'estargz', '--level', LEVEL, '--json'];
    },
    [`ctr-remote convert, level ${LEVEL}`]: (round) =>
      theirs(`theirs-${round}`, `--estargz-compression-level=${LEVEL}`),
    'ctr-remote convert, its default': (round) => theirs(`theirs-own-${round}`),
  };
  const runs = new Map(Object.keys(commands).map((each) => [each, [] as Run[]]));
  for (let round = 0; round < rounds; round += 1) {
    for (const [each, command] of Object.entries(commands)) {
      const before = await cpuOf(containerd.pid);
      const run = await timed(command(round), signal);
      const cpuMs = run.cpuMs + (await cpuOf(containerd.pid)) - before;
      runs.get(each)?.push({ wallMs: run.wallMs, cpuMs });
    }
    // Blobs that no image names any more would be found by the next round.
    for (const target of [`theirs-${round}`, `theirs-own-${round}`])
      await containerd.removeImage(registry.reference(target), signal);
  }
  const conversions = Array.from(runs, ([each, own]) => ({ name: each, imageBytes, runs: own }));
  console.log(`\n${name}, gzip, ${mebibytes(imageBytes)} MiB; CPU with all child processes`);
  printTable(
    ['', 'time', 'CPU'],
    conversions.map((each) => [
      each.name,
      spreadSeconds(each.runs.map(({ wallMs }) => wallMs)),
      (median(each.runs.map(({ cpuMs }) => cpuMs)) / 1000).toFixed(2),
    ]),
  );
  return conversions;
}

async function timed(command: readonly string[], signal: AbortSignal): Promise<Run> {
  // bash counts the CPU of all that it has waited for.
  const script = 'exec 3>&2; TIMEFORMAT="%R %U %S"; { time "$@" >/dev/null 2>&3; } 2>&1';
  const { stdout } = await execute('bash', ['-euc', script, 'timed', ...command], { signal });
  const [real = 0, user = 0, system = 0] = stdout.trim().split(' ').map(Number);
  return { wallMs: real * 1000, cpuMs: (user + system) * 1000 };
}

/** Of a process and of its children that have ended. */
async function cpuOf(pid: number): Promise<number> {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8');
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  return fields.slice(11, 15).reduce((sum, ticks) => sum + Number(ticks) * TICK_MS, 0);
}
