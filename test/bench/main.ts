/**
 * `npm run bench -- NAME [--json FILE] [options]`: runs `test/bench/NAME.ts`, prints its tables and, with `--json`, writes what
 * it found together with the machine and the commit.
 */
import { execFileSync } from 'node:child_process';
import { readFile, readdir, writeFile } from 'node:fs/promises';
import { availableParallelism, cpus, release, totalmem } from 'node:os';
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import type { Bench, BenchOptions, BenchValues } from './bench.ts';

/** Modules in this folder that are parts of benches. */
const NOT_BENCHES = new Set(['main', 'bench', 'table']);

process.chdir(resolve(import.meta.dirname, '../..'));
// As an installed node has it: compiled modules are kept.
process.env['NODE_COMPILE_CACHE'] ??= resolve('node_modules/.cache/compile');
const [name, ...args] = process.argv.slice(2);
const benches = (await readdir(import.meta.dirname))
  .filter((file) => file.endsWith('.ts'))
  .map((file) => file.slice(0, -3))
  .filter((file) => !NOT_BENCHES.has(file) && !file.includes('-'));
if (name === undefined || !benches.includes(name)) {
  console.error('usage: npm run bench -- NAME [--json FILE] [options]');
  for (const each of benches) console.error(await described(each));
  process.exit(2);
}
const bench = await load(name);
const { json, ...values } = parse(args, bench.options);
const interrupted = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => interrupted.abort());

const started = new Date();
const result = await bench.run(values, interrupted.signal);
if (typeof json === 'string') {
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

async function load(bench: string): Promise<Bench> {
  return (await import(`./${bench}.ts`)) as Bench;
}

/** Its title, and its options with their defaults. */
async function described(each: string): Promise<string> {
  const { title, options } = await load(each);
  const shown = Object.entries(options).map(([option, { type, default: value }]) =>
    type === 'boolean' ? `[--${option}]` : `[--${option} ${String(value ?? '...')}]`,
  );
  return `\n${each}: ${title}\n  ${shown.join(' ')}`;
}

function parse(words: readonly string[], options: BenchOptions): BenchValues<BenchOptions> {
  try {
    return parseArgs({ args: [...words], options: { ...options, json: { type: 'string' } } }).values;
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    return process.exit(2);
  }
}

function git(...words: readonly string[]): string {
  try {
    return execFileSync('git', words, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
  } catch {
    return '';
  }
}
