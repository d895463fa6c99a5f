import assert from 'node:assert/strict';
import { mkdir, symlink, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { testImage } from '#test/images/image-cache.ts';
import { compareTrees } from './compare-trees.ts';
import { TestContainerd } from './containerd.ts';
import { chainIds } from './chain-id.ts';
import { TestRegistry } from './registry.ts';
import { ShapedProxy } from './shaped-proxy.ts';
import { TempFolder } from './temp-folder.ts';

const isRoot = process.getuid?.() === 0;
const skip = isRoot ? false : 'needs root';

test('comparing trees finds a changed byte, a changed mode and a missing path, and nothing in equal trees', async (t) => {
  await using folder = await TempFolder.create();
  for (const side of ['a', 'b']) {
    await mkdir(folder.join(side, 'dir'), { recursive: true });
    await writeFile(folder.join(side, 'dir', 'file'), 'content');
    await symlink('dir/file', folder.join(side, 'link'));
  }
  const ignoreMtime = (): boolean => true;
  assert.deepEqual(await compareTrees(folder.join('a'), folder.join('b'), t.signal, { ignoreMtime }), []);
  await writeFile(folder.join('b', 'dir', 'file'), 'Content');
  await writeFile(folder.join('b', 'more'), '');
  const found = await compareTrees(folder.join('a'), folder.join('b'), t.signal, { ignoreMtime });
  assert.match(found.join('\n'), /^dir\/file: sha256 is .*\nmore: too much$/);
});

test('an image pushed through a slow link runs in containerd and its rootfs is what containerd unpacked', {
  skip,
}, async (t) => {
  const { signal } = t;
  await using folder = await TempFolder.create();
  const image = await testImage('perl', signal);
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  await registry.push(image, 'perl', 'latest', signal);
  await using proxy = await ShapedProxy.start({ host: '127.0.0.1', port: registry.port }, { delayMs: 2 });
  await using containerd = await TestContainerd.start({ folder: folder.join('c') }, signal);
  const reference = `${proxy.host}/perl:latest`;
  await containerd.pull(reference, 'overlayfs', signal);
  assert.ok(proxy.bytesDown >= (await image.layerBytes()), 'all layers came through the proxy');
  const result = await containerd.run(reference, { snapshotter: 'overlayfs' }, signal);
  assert.deepEqual([result.code, result.output], [0, '["hello",10]\n']);
  const top = chainIds((await image.config()).rootfs.diff_ids).at(-1);
  assert.ok(top !== undefined);
  await using first = await containerd.mountImage(top, 'overlayfs', folder.join('m1'), signal);
  assert.ok(first);
  assert.deepEqual(await compareTrees(folder.join('m1'), folder.join('m1'), signal), []);
});
