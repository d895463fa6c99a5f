import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { failed, runTestFile, type FileResult } from './test-file.ts';

const HEAD = "import { test } from 'node:test';\nimport { spawn } from 'node:child_process';\n";

async function run(body: string, signal: AbortSignal, timeoutMs = 60_000): Promise<FileResult> {
  const folder = await mkdtemp(join(tmpdir(), 'tf-'));
  try {
    await writeFile(join(folder, 'a.test.mjs'), HEAD + body);
    const options = { folder: join(folder, 'w'), timeoutMs, checkNamespaces: false, settleMs: 0 };
    return await runTestFile(join(folder, 'a.test.mjs'), options, signal);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

test('each test of a file is reported by its whole name, with the reason of a failure or a skip', async (t) => {
  const result = await run(
    `test('outer', async (t) => { await t.test('inner', () => { throw new Error('the reason'); }); });
     test('skipped', { skip: 'no root' }, () => {}); test('fine', () => {});`,
    t.signal,
  );
  assert.deepEqual(
    result.tests.map(({ name, outcome }) => [name, outcome]),
    [
      ['outer > inner', 'failed'],
      ['skipped', 'skipped'],
      ['fine', 'passed'],
    ],
  );
  assert.match(result.tests[0]?.reason ?? '', /the reason/);
  assert.equal(result.tests[1]?.reason, 'no root');
  assert.ok(failed(result));
});

test('a process that a file leaves behind fails the file and is ended', async (t) => {
  const result = await run(
    `test('leaks', () => { spawn('sleep', ['1000'], { detached: true, stdio: 'ignore' }).unref(); });`,
    t.signal,
  );
  const pid = Number(/^left behind: process (\d+): sleep 1000$/.exec(result.problems.join('\n'))?.[1]);
  assert.ok(pid > 0, result.problems.join('\n'));
  assert.ok(failed(result));
});

test('a file that ends without having run its tests fails', async (t) => {
  const result = await run(`process.exit(0);`, t.signal);
  assert.deepEqual(result.problems, ['has no test that ran']);
});

test('a file that hangs is ended', async (t) => {
  const result = await run(`test('hangs', () => new Promise(() => setInterval(() => {}, 1000)));`, t.signal, 500);
  assert.match(result.problems.join('\n'), /did not end within 0.5 s/);
});
