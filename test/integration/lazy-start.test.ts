import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { test } from 'node:test';
import { TestNode } from '#test/harness/node.ts';
import { startUntilReady } from '#test/harness/readiness.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { testImage } from '#test/images/image-cache.ts';
import { recipeOf } from '#test/images/recipe.ts';
import { runTool } from '#test/images/tool.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';
const QUIET = { KINDLING_BACKGROUND: 'false' };

test('a container of an eStargz image starts with a part of it, and in the end is a plain local image', {
  skip,
}, async (t) => {
  const { signal } = t;
  await using folder = await TempFolder.create('r');
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  const image = await testImage('perl', signal, 'ctr-remote-optimized');
  const reference = await registry.push(image, 'perl', 'optimized', signal);
  const total = await image.layerBytes();
  await using node = await TestNode.start(QUIET, signal);
  const { kindling, containerd } = node;

  // By the established client, with its labels; it knows nothing of Kindling.
  await containerd.ctrRemote(['images', 'rpull', '--plain-http', '--snapshotter', 'kindling', reference], signal);
  await startUntilReady(containerd, reference, recipeOf('perl'), 'kindling', signal);
  const status = await kindling.client.status(signal);
  assert.deepEqual([status.notLazy, status.layers.total], [[], 3]);
  const fetched = await kindling.bytesFetched(signal);
  assert.ok(fetched > 0 && fetched < total / 3, `${fetched} bytes fetched of ${total}`);

  // By ours, which finds everything there.
  const pulled = await kindling.pull(reference, signal);
  assert.deepEqual(
    pulled.layers.filter((layer) => layer.state === 'full'),
    [],
  );
  await containerd.pull(reference, 'overlayfs', signal);
  const wrong = await node.rootfsDifferences(pulled.chainId, signal, { mtimeRounded: true, ignoreTocFiles: true });
  assert.deepEqual(wrong, []);

  // Every file has been read: the layers are complete, and plain EROFS images.
  await kindling.untilComplete(signal);
  const layers = await readdir(`${kindling.dataDir}/layers`);
  assert.equal(layers.length, 3);
  for (const layer of layers) await runTool('fsck.erofs', [`${kindling.dataDir}/layers/${layer}/image`], signal);
  await registry.stop();
  await startUntilReady(containerd, reference, recipeOf('perl'), 'kindling', signal);
});

test('a plain gzip image, which nobody has indexed, starts under Kindling and has the same rootfs', {
  skip,
}, async (t) => {
  const { signal } = t;
  await using folder = await TempFolder.create('r');
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  const reference = await registry.push(await testImage('perl', signal), 'perl', 'gzip', signal);
  await using node = await TestNode.start({}, signal);
  // No pull of ours: `ctr run` and the like come to the snapshotter by containerd's own pull.
  const pulled = await node.kindling.pull(reference, signal);
  await startUntilReady(node.containerd, reference, recipeOf('perl'), 'kindling', signal);
  await node.containerd.pull(reference, 'overlayfs', signal);
  const wrong = await node.rootfsDifferences(pulled.chainId, signal);
  assert.deepEqual(wrong, []);
});
