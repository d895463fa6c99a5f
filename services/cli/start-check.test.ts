import assert from 'node:assert/strict';
import { chmod, chown, mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { checkStart, StartError } from './start-check.ts';

const asRoot = { skip: process.geteuid?.() === 0 ? false : 'needs root' };

async function inFolder(run: (folder: string) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'kindling-start-'));
  try {
    await run(folder);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

describe('what is checked before a node starts', () => {
  it('makes the folders that are missing, and is content', asRoot, async () => {
    await inFolder(async (folder) => {
      const at = (name: string) => join(folder, name);
      await checkStart(
        { dataDir: at('a/b'), socket: at('run/one.sock'), controlSocket: at('run/two.sock') },
        '/dev/null',
      );
      assert.ok((await stat(at('a/b'))).isDirectory());
      assert.ok((await stat(at('run'))).isDirectory());
    });
  });

  it('names the setting whose folder cannot be there, also in /proc, where nothing can', asRoot, async () => {
    await inFolder(async (folder) => {
      const socket = join(folder, 'x.sock');
      const file = join(folder, 'file');
      await writeFile(file, '');
      for (const dataDir of [join(file, 'data'), '/proc/kindling/data']) {
        const checked = checkStart({ dataDir, socket, controlSocket: socket }, '/dev/null');
        await assert.rejects(
          checked,
          (error) => error instanceof StartError && /KINDLING_DATA_DIR/.test(error.message),
        );
      }
      const checked = checkStart({ dataDir: folder, socket, controlSocket: join(file, 'x.sock') }, '/dev/null');
      await assert.rejects(checked, /KINDLING_CONTROL_SOCKET/);
    });
  });

  it('refuses a data folder in which others may write', asRoot, async () => {
    await inFolder(async (folder) => {
      const at = (name: string) => join(folder, name);
      const check = () =>
        checkStart({ dataDir: at('data'), socket: at('one.sock'), controlSocket: at('two.sock') }, '/dev/null');
      await check();
      await chmod(at('data'), 0o1777);
      await assert.rejects(check(), /written by everybody/);
      await chmod(at('data'), 0o711);
      await chown(at('data'), 12_345, 0);
      await assert.rejects(check(), /user 12345/);
    });
  });

  it('says that the FUSE device is missing', asRoot, async () => {
    await inFolder(async (folder) => {
      const socket = join(folder, 'x.sock');
      const checked = checkStart({ dataDir: folder, socket, controlSocket: socket }, join(folder, 'fuse'));
      await assert.rejects(checked, /modprobe fuse/);
    });
  });
});
