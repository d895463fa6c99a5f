/**
 * `npm run bench -- NAME [--json FILE] [options]`: runs `test/bench/NAME.ts`, prints its tables and, with `--json`, writes what
 * it found together with the machine and the commit.
 */
import { execFileSync } from 'node:child_process';
import { readFile, readdir, writeFile } from 'node:fs/promises';
import { availableParallelism, cpus, release, totalmem } from 'node:os';
import { resolve } from 'node:path';

/** What every bench module exports. It throws when a result is wrong: a time of wrong bytes is no result. */
export interface Bench {
  /** One line for the list of benches. */
  readonly title?: string;
  /** @returns what goes into the JSON under `result` */
  run(args: readonly string[], signal?: AbortSignal): Promise<unknown>;
}

/** Modules in this folder that are parts of benches. */
const NOT_BENCHES = new Set(['main', 'table']);

process.chdir(resolve(import.meta.dirname, '../..'));
const interrupted = new AbortController();
const args = process.argv.slice(2);
const at = args.indexOf('--json');
const json = at < 0 ? undefined : args.splice(at, 2)[1];
const name = args.shift();
const files = await readdir(import.meta.dirname);
const benches = files
  .filter((file) => file.endsWith('.ts') && !file.endsWith('.test.ts'))
  .map((file) => file.slice(0, -3))
  .filter((file) => !NOT_BENCHES.has(file) && !file.includes('-'));

if (name === undefined || !benches.includes(name)) {
  console.error(`usage: npm run bench -- NAME [--json FILE] [options]\n  benches: ${benches.join(', ')}`);
  process.exit(2);
}
if (json === undefined && at >= 0) {
  console.error('--json needs the name of a file');
  process.exit(2);
}
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => interrupted.abort());

const started = new Date();
const bench = (await import(`./${name}.ts`)) as Bench;
const result = await bench.run(args, interrupted.signal);
if (json !== undefined) {
  const record = {
    bench: name,
    args,
    started: started.toISOString(),
    seconds: (Date.now() - started.getTime()) / 1000,
    commit: git('rev-parse', 'HEAD'),
    changed: git('status', '--porcelain')
      .split('\n')
      .filter((line) => line !== '').length,
    machine: {
      cpu: cpus()[0]?.model ?? '?',
      cores: availableParallelism(),
      memoryBytes: totalmem(),
      kernel: release(),
      system: /^PRETTY_NAME="(.*)"/m.exec(await readFile('/etc/os-release', 'utf8').catch(() => ''))?.[1] ?? '?',
      node: process.version,
    },
    result,
  };
  await writeFile(json, `${JSON.stringify(record, null, 2)}\n`);
  console.log(`\nwritten to ${json}`);
}

function git(...words: readonly string[]): string {
  try {
    return execFileSync('git', words, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
  } catch {
    return '';
  }
}
