import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { isAnswered, lockFolder } from './keeper-lock.ts';

async function inFolder(run: (folder: string) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'kindling-lock-'));
  try {
    await run(folder);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** A process that has the lock, or was refused it, and says which. */
function locker(folder: string) {
  const file = JSON.stringify(new URL('keeper-lock.ts', import.meta.url).href);
  const script = `import { lockFolder } from ${file}; console.log(await lockFolder(${JSON.stringify(folder)})); setInterval(() => {}, 1000);`;
  const args = ['--disable-warning=ExperimentalWarning', '--input-type=module', '--eval', script];
  return spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
}

test('a folder is locked for one process until that is killed, under a name that only its owner can read', async () => {
  await inFolder(async (folder) => {
    const locked = join(folder, 'data', 'fuse');
    const holder = locker(locked);
    try {
      assert.equal(String((await once(holder.stdout, 'data'))[0]).trim(), 'true');
      assert.equal(await lockFolder(locked), false);
      assert.equal((await stat(`${locked}.lock`)).mode & 0o777, 0o600);
      assert.match(await readFile(`${locked}.lock`, 'utf8'), /^[0-9a-f-]{36}$/);
    } finally {
      holder.kill('SIGKILL');
      await once(holder, 'exit');
    }
    assert.equal(await lockFolder(locked), true);
  });
});

test('a socket is answered while somebody listens on it', async () => {
  await inFolder(async (folder) => {
    const path = join(folder, 's');
    assert.equal(await isAnswered(path), false);
    const server = createServer();
    server.listen(path);
    await once(server, 'listening');
    assert.equal(await isAnswered(path), true);
    server.close();
    await once(server, 'close');
    assert.equal(await isAnswered(path), false);
  });
});
