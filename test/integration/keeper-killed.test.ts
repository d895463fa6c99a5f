import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { convertImage } from '#shared/convert/convert-image.ts';
import { sha256 } from '#shared/digest/digest.ts';
import { parseReference } from '#shared/registry/reference.ts';
import { RegistryClient } from '#shared/registry/registry-client.ts';
import type { RunningContainer } from '#test/harness/containerd.ts';
import { TestNode } from '#test/harness/node.ts';
import { dropCaches } from '#test/harness/page-cache.ts';
import { startUntilReady } from '#test/harness/readiness.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { tinyImage } from '#test/harness/tiny-image.ts';
import { testImage } from '#test/images/image-cache.ts';
import { recipeOf } from '#test/images/recipe.ts';
import { runTool } from '#test/images/tool.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';

test('when keeper and agent are killed, complete layers go on, the rest is EIO, and the next start heals', {
  skip,
}, async (t) => {
  const { signal } = t;
  await using folder = await TempFolder.create('kk');
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  const complete = await registry.push(
    await testImage('perl', signal, 'ctr-remote-optimized'),
    'complete',
    'v1',
    signal,
  );
  const data = randomBytes(8 * 1024 * 1024);
  const partial = await lazyImage(registry, folder, data, signal);
  await using node = await TestNode.start({ KINDLING_BACKGROUND: 'false' }, signal);
  const { kindling, containerd } = node;

  const { chainId } = await kindling.pull(complete, signal);
  const script =
    'while :; do cat /usr/bin/perl /usr/bin/sort /usr/lib/x86_64-linux-gnu/lib*.so.* >/dev/null || exit 1; echo round; done';
  const reading = { snapshotter: 'kindling', command: ['sh', '-c', script] };
  await using early = await containerd.start(complete, reading, signal);
  await early.untilOutput('round', signal);
  await node.withRootfs(chainId, 'kindling', signal, async (rootfs) => {
    await runTool('sh', ['-c', `find ${rootfs} -xdev -type f -print0 | xargs -0 cat >/dev/null`], signal);
  });
  await kindling.untilComplete(signal);
  await using container = await containerd.start(complete, reading, signal);
  await container.untilOutput('round', signal);

  const other = await kindling.pull(partial, signal);
  const mounted = folder.join('mounted');
  await using view = await containerd.mountImage(other.chainId, 'kindling', mounted, signal);
  void view;
  const { dependents } = await kindling.client.status(signal);
  const whoDepends = dependents.map(({ mount, snapshot, incompleteLayers }) => [
    snapshot?.split('/').at(-1) ?? mount,
    incompleteLayers,
  ]);
  assert.deepEqual(
    whoDepends,
    [
      [early.id, 0],
      [mounted, 1],
    ],
    'the one that started before its layers were complete, and the one that has an incomplete layer',
  );
  await kindling.killAll();
  await dropCaches(signal);
  await assert.rejects(
    runTool('sha256sum', [`${mounted}/data`], signal),
    /Input\/output error|endpoint is not connected/,
  );
  await twoRounds(container, signal);
  // With EIO, or by SIGBUS where what could not be read is a page of the program itself.
  assert.notEqual(await early.ended, 0);

  await node.startKindlingAgain(signal);
  await dropCaches(signal);
  await twoRounds(container, signal);
  assert.ok(container.running, container.output);
  await startUntilReady(containerd, complete, recipeOf('perl'), 'kindling', signal);
  await node.withRootfs(other.chainId, 'kindling', signal, async (rootfs) => {
    const line = await runTool('sha256sum', [`${rootfs}/data`], signal);
    assert.equal(`sha256:${line.slice(0, 64)}`, sha256(data));
  });
});

/** With a TOC: otherwise its only layer would be complete after one pass. */
async function lazyImage(
  registry: TestRegistry,
  folder: TempFolder,
  data: Buffer,
  signal: AbortSignal,
): Promise<string> {
  const image = await tinyImage(folder.join('partial'), [{ data }], ['/none'], signal);
  const source = parseReference(await registry.push(image, 'partial', 'plain', signal));
  const reference = registry.reference('partial', 'lazy');
  const client = new RegistryClient();
  try {
    const target = parseReference(reference);
    await convertImage({ source, target, client, format: 'estargz', platforms: 'all' }, signal);
  } finally {
    await client.close();
  }
  return reference;
}

async function twoRounds(container: RunningContainer, signal: AbortSignal): Promise<void> {
  const rounds = () => container.output.split('round').length;
  const before = rounds();
  while (rounds() < before + 2) {
    assert.ok(container.running, container.output);
    await sleep(50, undefined, { signal });
  }
}
