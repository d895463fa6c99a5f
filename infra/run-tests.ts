/**
 * Runs the tests: `node infra/run-tests.ts [unit | integration | FILE...]`, all of them without an argument.
 *
 * Unit tests (beside the code) run two files at a time, those of `test/` one file at a time. A file that fails is run once
 * more, alone: when it then passes it is reported as flaky, when it fails again the run fails.
 */
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { glob, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { failed, runTestFile, type FileResult } from './test-file.ts';

const UNIT_AT_A_TIME = 2;
const UNIT_TIMEOUT_MS = 90_000;
const INTEGRATION_TIMEOUT_MS = 240_000;
const IMAGES_TIMEOUT_MS = 600_000;
/** The image that the integration tests start, and its variants; building them takes a minute once, so it is not part of a test's time. */
const IMAGES = ['perl', 'gzip-6', 'ctr-remote-optimized'];

process.chdir(resolve(import.meta.dirname, '..'));
process.env['NODE_COMPILE_CACHE'] ??= resolve('node_modules/.cache/compile');
const interrupted = new AbortController();
for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => interrupted.abort());

const started = performance.now();
const selection = process.argv.slice(2);
const unit = await filesOf('unit');
const integration = await filesOf('integration');
// Short: unix sockets live below it, and their paths are limited to 107 bytes.
const folder = await mkdtemp(join(tmpdir(), 'kt-'));
let count = 0;
const finals: FileResult[] = [];
const flaky: FileResult[] = [];
let prepared = true;
try {
  await runAll(unit, UNIT_AT_A_TIME, UNIT_TIMEOUT_MS);
  if (integration.length > 0 && !interrupted.signal.aborted) {
    prepared = await prepareImages();
    if (prepared) await runAll(integration, 1, INTEGRATION_TIMEOUT_MS);
  }
} finally {
  await rm(folder, { recursive: true, force: true }).catch(() => {});
}
process.exitCode = summary() ? 0 : 1;

async function filesOf(kind: 'unit' | 'integration'): Promise<string[]> {
  const patterns = kind === 'unit' ? ['{shared,services,infra}/**/*.test.ts'] : ['test/**/*.test.ts'];
  const files: string[] = [];
  for await (const file of glob(patterns)) files.push(file);
  files.sort();
  if (selection.length === 0 || (selection.length === 1 && selection[0] === kind)) return files;
  return files.filter((file) =>
    selection.some((part) => part !== 'unit' && part !== 'integration' && matches(file, part)),
  );
}

function matches(file: string, part: string): boolean {
  const path = part.replace(/^\.\//, '');
  return file === path || file.startsWith(`${path.replace(/\/$/, '')}/`);
}

async function runAll(files: readonly string[], atATime: number, timeoutMs: number): Promise<void> {
  const queue = [...files];
  const again: FileResult[] = [];
  const worker = async (): Promise<void> => {
    for (let file = queue.shift(); file !== undefined && !interrupted.signal.aborted; file = queue.shift()) {
      const result = await run(file, timeoutMs, atATime === 1);
      if (failed(result)) again.push(result);
      else finals.push(result);
    }
  };
  await Promise.all(Array.from({ length: atATime }, worker));
  for (const first of again) {
    if (interrupted.signal.aborted) {
      finals.push(first);
      continue;
    }
    const second = await run(first.file, timeoutMs, true);
    finals.push(second);
    if (!failed(second)) flaky.push(first);
  }
}

async function run(file: string, timeoutMs: number, alone: boolean): Promise<FileResult> {
  const result = await runTestFile(
    file,
    { folder: join(folder, String(++count)), timeoutMs, checkNamespaces: alone },
    interrupted.signal,
  );
  const passed = result.tests.filter((test) => test.outcome === 'passed').length;
  console.log(
    `${failed(result) ? 'FAILED' : 'ok    '} ${result.seconds.toFixed(1).padStart(6)} s  ${file}  (${passed} of ${result.tests.length})`,
  );
  if (failed(result)) printFailure(result);
  return result;
}

function printFailure(result: FileResult): void {
  for (const problem of result.problems) console.log(`    ${problem}`);
  for (const test of result.tests.filter((test) => test.outcome === 'failed')) {
    console.log(`    ${test.name}\n${indent(test.reason, 8)}`);
  }
  if (result.output.trim() !== '') console.log(`    output:\n${indent(result.output.trim().slice(-8_000), 8)}`);
}

function indent(text: string, by: number): string {
  return text
    .split('\n')
    .map((line) => ' '.repeat(by) + line)
    .join('\n');
}

/** The images that integration tests need, built or found in the cache. */
async function prepareImages(): Promise<boolean> {
  if (process.getuid?.() !== 0 || !existsSync('test/images/main.ts')) return true;
  const begun = performance.now();
  const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', 'test/images/main.ts', ...IMAGES], {
    stdio: ['ignore', 'inherit', 'inherit'],
    signal: AbortSignal.any([interrupted.signal, AbortSignal.timeout(IMAGES_TIMEOUT_MS)]),
  });
  const code = await new Promise<number | null>((done) => {
    child.once('error', () => done(null));
    child.once('exit', (exitCode) => done(exitCode));
  });
  console.log(
    `${code === 0 ? 'ok    ' : 'FAILED'} ${((performance.now() - begun) / 1000).toFixed(1).padStart(6)} s  test images`,
  );
  return code === 0;
}

function summary(): boolean {
  const tests = finals.flatMap((result) => result.tests.map((test) => ({ ...test, file: result.file })));
  const counts = { passed: 0, failed: 0, skipped: 0 };
  for (const test of tests) counts[test.outcome]++;
  // A file that failed as a whole counts as one failure, so that the closing line can never say 0 failed.
  const broken = finals.filter((result) => result.problems.length > 0);
  counts.failed += broken.length;
  if (!prepared) counts.failed++;

  console.log('');
  for (const result of flaky) {
    const names = result.tests.filter((test) => test.outcome === 'failed').map((test) => test.name);
    console.log(`flaky: passed when run again: ${result.file}: ${[...names, ...result.problems].join('; ')}`);
  }
  const skips = new Map<string, number>();
  for (const test of tests.filter((test) => test.outcome === 'skipped')) {
    const key = `${test.file}: ${test.reason || test.name}`;
    skips.set(key, (skips.get(key) ?? 0) + 1);
  }
  for (const [key, times] of skips) console.log(`skipped: ${key}${times > 1 ? ` (${times} tests)` : ''}`);
  for (const test of tests.filter((test) => test.outcome === 'failed'))
    console.log(`failed: ${test.file}: ${test.name}`);
  for (const result of broken) console.log(`failed: ${result.file}: ${result.problems.join('; ')}`);
  if (!prepared) console.log('failed: the test images could not be built, so the integration tests did not run');
  if (interrupted.signal.aborted) console.log('interrupted: not every test ran');
  if (finals.length === 0) console.log(`no test file matches ${selection.join(' ')}`);
  const total = counts.passed + counts.failed + counts.skipped;
  console.log(`${total} tests in ${finals.length} files, ${((performance.now() - started) / 1000).toFixed(0)} s`);
  console.log(`${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`);
  return counts.failed === 0 && finals.length > 0 && !interrupted.signal.aborted;
}
