import { spawn } from 'node:child_process';
import { mkdir, readFile, rm } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { describeLeak, findLeaks, networkNamespaces, type Leak, type LeakScope } from '#test/harness/leaks.ts';
import type { ReportedTest } from './test-reporter.ts';

export interface FileResult {
  readonly file: string;
  readonly seconds: number;
  readonly tests: readonly ReportedTest[];
  /** What is wrong with the file as a whole: ended badly, hung, left something behind. */
  readonly problems: readonly string[];
  /** End of what it wrote to stdout and stderr. */
  readonly output: string;
}

/** Kept of a file's output: enough for the reason, not a whole debug log. */
const OUTPUT_CHARS = 64 * 1024;
/** Processes that were told to end may need a moment; a leak is what is still there after it. */
const SETTLE_MS = 5_000;

export function failed(result: FileResult): boolean {
  return result.problems.length > 0 || result.tests.some((test) => test.outcome === 'failed');
}

/**
 * Runs one test file in a process of its own, with a temp folder and a marker of its own, and looks afterwards for what it
 * left behind; that is taken away, so that the next file does not suffer from it.
 */
export async function runTestFile(
  file: string,
  options: {
    /** Becomes the file's temp folder. */
    readonly folder: string;
    readonly timeoutMs: number;
    readonly checkNamespaces: boolean;
    readonly settleMs?: number;
  },
  signal: AbortSignal,
): Promise<FileResult> {
  const { folder, timeoutMs } = options;
  await mkdir(folder, { recursive: true });
  const report = `${folder}.ndjson`;
  const marker = `TEST_FILE_RUN=${folder}`;
  const started = performance.now();
  const namespacesBefore = await networkNamespaces();
  const ended = await runProcess(file, report, folder, timeoutMs, signal);
  const seconds = (performance.now() - started) / 1000;
  const problems: string[] = [...ended.problems];
  const tests = await readReport(report);
  const failures = tests.filter((test) => test.outcome === 'failed').length;
  if (problems.length === 0 && ended.code !== 0 && failures === 0) {
    problems.push(`ended with ${ended.code ?? ended.killedBy} although no test failed`);
  }
  if (problems.length === 0 && tests.length === 0) problems.push('has no test that ran');
  const scope = { marker, folder, namespacesBefore };
  const leaks = (await settledLeaks(scope, options.settleMs ?? SETTLE_MS)).filter(
    (leak) => options.checkNamespaces || leak.kind !== 'network namespace',
  );
  problems.push(...leaks.map((leak) => `left behind: ${describeLeak(leak)}`));
  await takeAway(leaks);
  // A mount that could not be taken away must not be followed into.
  await rm(folder, { recursive: true, force: true }).catch((error: Error) =>
    problems.push(`left behind: files in its temp folder that cannot be removed: ${error.message}`),
  );
  await rm(report, { force: true });
  return { file, seconds, tests, problems, output: ended.output };
}

async function runProcess(
  file: string,
  report: string,
  folder: string,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<{ code: number | null; killedBy: string | null; problems: string[]; output: string }> {
  const env: NodeJS.ProcessEnv = { ...process.env, TMPDIR: folder, TEST_FILE_RUN: folder, NODE_ENV: 'test' };
  // The caller's settings must not reach the tests.
  for (const name of Object.keys(env)) if (name.startsWith('KINDLING_')) delete env[name];
  // Set within a test of the runner itself: a runner below it would say nothing.
  delete env['NODE_TEST_CONTEXT'];
  const child = spawn(
    process.execPath,
    [
      '--disable-warning=ExperimentalWarning',
      '--test-reporter=./infra/test-reporter.ts',
      `--test-reporter-destination=${report}`,
      file,
    ],
    // A group of its own, so that a hung file is ended with its children.
    { env, detached: true, stdio: ['ignore', 'pipe', 'pipe'] },
  );
  const problems: string[] = [];
  let output = '';
  const keep = (text: string): void => {
    output = (output + text).slice(-OUTPUT_CHARS);
  };
  child.stdout.setEncoding('utf8').on('data', keep);
  child.stderr.setEncoding('utf8').on('data', keep);
  const kill = (killSignal: NodeJS.Signals): void => {
    try {
      if (child.pid !== undefined) process.kill(-child.pid, killSignal);
    } catch {
      // It has just ended.
    }
  };
  let forced: NodeJS.Timeout | undefined;
  const end = (): void => {
    kill('SIGTERM');
    forced = setTimeout(() => kill('SIGKILL'), 10_000);
  };
  const timer = setTimeout(() => {
    problems.push(`did not end within ${timeoutMs / 1000} s: a test hangs, or something it started is still open`);
    end();
  }, timeoutMs);
  signal.addEventListener('abort', end, { once: true });
  // `exit`, not `close`: a leaked grandchild that holds the pipe would otherwise keep us waiting.
  const [code, killedBy] = await new Promise<[number | null, string | null]>((resolve) => {
    child.once('error', (error) => {
      problems.push(`could not be started: ${error.message}`);
      resolve([null, null]);
    });
    child.once('exit', (exitCode, exitSignal) => resolve([exitCode, exitSignal]));
  });
  clearTimeout(timer);
  clearTimeout(forced);
  signal.removeEventListener('abort', end);
  await sleep(20); // what is still in the pipes
  child.stdout.destroy();
  child.stderr.destroy();
  return { code, killedBy, problems, output };
}

async function readReport(report: string): Promise<ReportedTest[]> {
  const text = await readFile(report, 'utf8').catch(() => '');
  const lines = text.split('\n').filter((line) => line.startsWith('{') && line.endsWith('}'));
  return lines.map((line) => JSON.parse(line) as ReportedTest);
}

async function settledLeaks(scope: LeakScope, settleMs: number): Promise<Leak[]> {
  const deadline = performance.now() + settleMs;
  for (;;) {
    const leaks = await findLeaks(scope);
    if (leaks.length === 0 || performance.now() > deadline) return leaks;
    await sleep(100);
  }
}

async function takeAway(leaks: readonly Leak[]): Promise<void> {
  for (const leak of leaks) {
    if (leak.kind === 'process') {
      try {
        process.kill(leak.pid, 'SIGKILL');
      } catch {
        // It has ended by itself.
      }
    }
  }
  for (const leak of leaks) {
    if (leak.kind === 'mount') await command('umount', ['-l', leak.path]);
    if (leak.kind === 'loop device') await command('losetup', ['-d', leak.path]);
    if (leak.kind === 'network namespace') await command('ip', ['netns', 'delete', leak.what]);
  }
}

async function command(name: string, args: readonly string[]): Promise<void> {
  const child = spawn(name, args, { stdio: 'ignore' });
  await new Promise<void>((resolve) => {
    child.once('error', () => resolve());
    child.once('exit', () => resolve());
  });
}
