import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { after, test } from 'node:test';
import { sha256 } from '#shared/digest/digest.ts';
import type { MountInfo } from '../mounts/mount-table.ts';
import type { Mounter } from '../mounts/mounter.ts';
import { LayerMounts } from './layer-mounts.ts';

const folder = await mkdtemp(join(tmpdir(), 'kindling-lm-'));
after(() => rm(folder, { recursive: true }));
const never = new AbortController().signal;
const [a, b, gone] = ['a', 'b', 'gone'].map((name) => sha256(Buffer.from(name)));
assert.ok(a && b && gone);

/** A mount table that calls change, each after a turn. */
class FakeMounter implements Mounter {
  readonly table: [source: string, target: string][] = [];
  async mountErofs(source: string, target: string): Promise<{ readonly via: 'file' }> {
    await Promise.resolve();
    this.table.push([source, target]);
    return { via: 'file' };
  }
  mount(): Promise<void> {
    return Promise.resolve();
  }
  async unmount(target: string): Promise<void> {
    await Promise.resolve();
    const at = this.table.findLastIndex((mount) => mount[1] === target);
    if (at >= 0) this.table.splice(at, 1);
  }
  mountsWithin(): Promise<readonly MountInfo[]> {
    return Promise.resolve(
      this.table.map(([source, target], id) => ({
        id,
        parentId: 0,
        device: '0:1',
        root: '/',
        target,
        options: 'ro',
        type: 'erofs',
        source,
        superOptions: '',
      })),
    );
  }
}

test('a layer is mounted once for all who ask, on top when its source changes, and taken away whole', async () => {
  const mounter = new FakeMounter();
  const mounts = new LayerMounts(folder, mounter);
  const [path] = await Promise.all([1, 2, 3].map(async () => await mounts.mount(a, '/fuse/a.img', never)));
  assert.deepEqual(mounter.table, [['/fuse/a.img', path]]);
  await mounts.mount(a, '/disk/a/image', never);
  assert.deepEqual(
    mounter.table.map(([source]) => source),
    ['/fuse/a.img', '/disk/a/image'],
  );
  assert.equal(mounts.sourceOf(a), '/disk/a/image');
  await Promise.all([mounts.unmount(a, never), mounts.unmount(a, never)]);
  assert.deepEqual(mounter.table, []);
  assert.equal(mounts.sourceOf(a), undefined);
  assert.deepEqual(await readdir(folder), [], 'the mount point is gone');
  assert.equal(await mounts.mount(a, '/fuse/a.img', never), path);
});

test('the next agent finds the mounts of the last one, and takes away those of layers that are gone', async () => {
  const mounter = new FakeMounter();
  const last = new LayerMounts(folder, mounter);
  await last.mount(a, '/fuse/a.img', never);
  await last.mount(a, '/disk/a/image', never);
  await last.mount(gone, '/fuse/gone.img', never);
  await last.mount(b, '/fuse/b.img', never);
  // Killed between making a mount point and mounting.
  await mkdir(join(folder, '0123456789abcdef'));
  const next = new LayerMounts(folder, mounter);
  assert.deepEqual(await next.recover([a, b], never), [last.pathOf(gone)]);
  assert.equal(next.sourceOf(a), '/disk/a/image');
  assert.equal(next.sourceOf(b), '/fuse/b.img');
  assert.equal(next.count, 2);
  assert.deepEqual(
    (await readdir(folder)).sort(),
    [last.pathOf(a), last.pathOf(b)].map((path) => basename(path)).sort(),
  );
  await next.unmount(a, never);
  assert.deepEqual(
    mounter.table.map(([source]) => source),
    ['/fuse/b.img'],
  );
});
