import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { walkTree } from '#test/harness/compare-trees.ts';
import { LinkProcess } from '#test/harness/link-process.ts';
import { TestNode } from '#test/harness/node.ts';
import { startUntilReady } from '#test/harness/readiness.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { soak } from '#test/harness/soak.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { testImage } from '#test/images/image-cache.ts';
import { recipeOf } from '#test/images/recipe.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';

test('containers that read all the time see no error and no wrong byte while the agent is killed again and again', {
  skip,
}, async (t) => {
  const { signal } = t;
  await using folder = await TempFolder.create('r');
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  await registry.push(await testImage('perl', signal, 'ctr-remote-optimized'), 'perl', 'optimized', signal);
  await using link = await LinkProcess.start(registry.port, { delayMs: 5 }, signal);
  const reference = `${link.host}/perl:optimized`;
  await using node = await TestNode.start({ KINDLING_BACKGROUND_RATE: '2M' }, signal);
  const { kindling, containerd } = node;
  const { chainId } = await kindling.pull(reference, signal);
  await containerd.pull(reference, 'overlayfs', signal);
  const tree = await node.withRootfs(chainId, 'overlayfs', signal, async (rootfs) => await walkTree(rootfs, signal));

  const result = await soak(node, [{ reference, chainId, tree }], { kills: 6, pauseMs: () => 700 }, signal);
  assert.equal(result.kills, 6);
  assert.ok(result.containerRounds > 0);
  t.diagnostic(JSON.stringify(result));

  // Keeper and agent together: what is not complete is lost for what runs, the next start serves new containers.
  await kindling.killAll();
  await node.startKindlingAgain(signal);
  // containerd has found nobody at the socket, and says "unavailable" until it tries again, after three seconds at most.
  for (let tries = 0; ; tries++) {
    const answered = await containerd.ctr(['snapshots', '--snapshotter', 'kindling', 'ls'], signal).then(
      () => true,
      (error: unknown) => {
        if (tries > 100) throw error;
        return false;
      },
    );
    if (answered) break;
    await sleep(100, undefined, { signal });
  }
  await startUntilReady(containerd, reference, recipeOf('perl'), 'kindling', signal);
});
