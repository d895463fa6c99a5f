import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pushChurnImage } from '#test/harness/churn-image.ts';
import { LinkProcess } from '#test/harness/link-process.ts';
import { TestNode } from '#test/harness/node.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { soak, SOAK_SETTINGS } from '#test/harness/soak.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { testImage } from '#test/images/image-cache.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';

test('containers see no error and no wrong byte while the agent is killed within all that it does, and nothing is left', {
  skip,
}, async (t) => {
  const { signal } = t;
  await using folder = await TempFolder.create('r');
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  await registry.push(await testImage('perl', signal, 'ctr-remote-optimized'), 'perl', 'optimized', signal);
  await using link = await LinkProcess.start(registry.port, { delayMs: 5 }, signal);
  const churn = await pushChurnImage(registry, link.host, folder, signal);
  await using node = await TestNode.start(SOAK_SETTINGS, signal);

  const options = { kills: 1, pauseMs: () => 300, reloads: false, everyKind: false, quietRounds: 0 };
  const result = await soak(node, [`${link.host}/perl:optimized`], churn, options, signal);
  assert.ok(result.kills > 1 && result.containerRounds > 0 && result.reads > 0 && result.verified.spans > 0);
  t.diagnostic(JSON.stringify(result));
});
