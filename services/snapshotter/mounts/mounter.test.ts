import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { access, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { promisify } from 'node:util';
import { createMounter, MountError } from './mounter.ts';

const execute = promisify(execFile);
const usable =
  process.getuid?.() === 0 &&
  (await execute('mkfs.erofs', ['--help']).then(
    () => true,
    () => false,
  ));
const loops = await access('/dev/loop-control').then(
  () => true,
  () => false,
);
const signal = new AbortController().signal;

describe('mounting EROFS images', { skip: usable ? false : 'needs root and mkfs.erofs' }, () => {
  let folder = '';
  let image = '';
  const target = async (name: string): Promise<string> => {
    await mkdir(join(folder, name));
    return join(folder, name);
  };

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'kindling-mounter-'));
    image = join(folder, 'layer.img');
    await mkdir(join(folder, 'tree'));
    await writeFile(join(folder, 'tree', 'hello'), 'world\n');
    await execute('mkfs.erofs', ['-Enoinline_data', image, join(folder, 'tree')]);
  });
  after(async () => {
    const mounter = createMounter();
    for (const mount of (await mounter.mountsWithin(folder, signal)).toReversed()) {
      await mounter.unmount(mount.target, { lazy: true }, signal);
    }
    await rm(folder, { recursive: true });
  });

  it('mounts, finds and unmounts, several at a time', async () => {
    const mounter = createMounter({ parallel: 2 });
    const targets = await Promise.all(['a', 'b', 'c', 'd'].map(target));
    await Promise.all(targets.map((path) => mounter.mountErofs(image, path, signal)));
    for (const path of targets) assert.equal(await readFile(join(path, 'hello'), 'utf8'), 'world\n');
    const found = await mounter.mountsWithin(folder, signal);
    assert.deepEqual(found.map((mount) => mount.target).toSorted(), targets);
    assert.ok(found.every((mount) => mount.source === image && mount.type === 'erofs'));
    await Promise.all(targets.map((path) => mounter.unmount(path, {}, signal)));
    assert.deepEqual(await mounter.mountsWithin(folder, signal), []);
  });

  it('mounts through a loop device where it must', { skip: loops ? false : 'needs loop devices' }, async () => {
    const mounter = createMounter({ forceLoop: true });
    const path = await target('loop');
    assert.deepEqual(await mounter.mountErofs(image, path, signal), { via: 'loop' });
    assert.equal(await readFile(join(path, 'hello'), 'utf8'), 'world\n');
    assert.equal((await mounter.mountsWithin(path, signal))[0]?.source, image);
    await mounter.unmount(path, {}, signal);
  });

  it('says what is wrong, by errno', async () => {
    const mounter = createMounter();
    const path = await target('wrong');
    const code = (expected: string) => (error: unknown) => error instanceof MountError && error.code === expected;
    await assert.rejects(mounter.mountErofs(join(folder, 'none.img'), path, signal), code('not-found'));
    await assert.rejects(mounter.mountErofs(image, join(folder, 'none'), signal), code('not-found'));
    await writeFile(join(folder, 'noise.img'), Buffer.alloc(8192, 7));
    await assert.rejects(mounter.mountErofs(join(folder, 'noise.img'), path, signal), code('failed'));
    const request = { source: 'x', target: path, type: 'nosuchfs', flags: 0, data: '' };
    await assert.rejects(mounter.mount(request, signal), code('unsupported'));
  });

  it('does not take away what is in use, unless lazily; nothing there is success', async () => {
    const mounter = createMounter();
    const path = await target('busy');
    await mounter.mountErofs(image, path, signal);
    const holder = execFile('sh', ['-c', 'cd "$0" && echo in && read line', path]);
    await new Promise((resolve) => holder.stdout?.once('data', resolve));
    await assert.rejects(mounter.unmount(path, {}, signal), { name: 'MountError', code: 'busy', errno: 'EBUSY' });
    await mounter.unmount(path, { lazy: true }, signal);
    await mounter.unmount(path, {}, signal);
    const exited = new Promise((resolve) => holder.once('exit', resolve));
    holder.stdin?.end();
    await exited;
  });

  it('does not begin when it was cancelled', async () => {
    const path = await target('cancelled');
    await assert.rejects(createMounter().mountErofs(image, path, AbortSignal.abort(new Error('no'))), /no/);
    assert.deepEqual(await createMounter().mountsWithin(path, signal), []);
  });
});
