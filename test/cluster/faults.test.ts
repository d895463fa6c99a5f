import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { sharedLayer } from './shared-layer.ts';
import { TestCluster, type ClusterNode } from './test-cluster.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';
const LINK = { bitsPerS: 100_000_000 };

test('starts end with the right bytes when nodes, links, Redis and NATS fail', { skip }, async (t) => {
  const { signal } = t;
  const layers = await Promise.all([0, 1, 2, 3].map(async () => await sharedLayer(16, 250_000, signal)));
  await using cluster = await TestCluster.start({ nodes: 4, link: LINK, layers, distributors: 2 }, signal);
  const [killed, flushed, alone, cut] = layers.map((layer) => cluster.reference(layer));
  const [first, second, third, fourth] = cluster.nodes;
  assert.ok(killed && flushed && alone && cut && first && second && third && fourth);
  const same = async (nodes: readonly ClusterNode[], layer: typeof killed) => {
    const fetched = await Promise.all(nodes.map(async (node) => await node.fetchAll(layer, signal)));
    assert.equal(new Set(fetched.map(({ digest }) => digest)).size, 1);
    return fetched;
  };

  await t.test('a node that feeds others is killed', async () => {
    const dying = fourth.fetchAll(killed, signal).catch(() => undefined);
    const others = same([first, second, third], killed);
    const begun = async () => await fourth.figures(killed, signal).then(({ peer, registry }) => peer + registry > 0);
    while (!(await begun())) await sleep(10, undefined, { signal });
    fourth.kill();
    cluster.distributors[0]?.kill('SIGKILL');
    await dying;
    await others;
    await fourth[Symbol.asyncDispose]();
    await fourth.start(signal);
  });

  await t.test('Redis loses everything: nodes say again what they have, and the next burst is shared', async () => {
    const nodes = [first, second, third];
    const announced = async () => await Promise.all(nodes.map(async (node) => await node.figures(killed, signal)));
    const before = await announced();
    await cluster.restartRedis(signal);
    while (!(await announced()).every((now, i) => now.up && now.announced > (before[i]?.announced ?? 0))) {
      await sleep(50, undefined, { signal });
    }
    const fetched = await same(nodes, flushed);
    assert.ok(
      fetched.some(({ peer }) => peer > 0),
      JSON.stringify(fetched),
    );
  });

  await t.test('a node is cut off in the middle', async () => {
    const lost = new AbortController();
    const cutting = third.fetchAll(cut, AbortSignal.any([signal, lost.signal])).catch(() => undefined);
    const others = same([first, second], cut);
    await cluster.network.connect(third.host, false, signal);
    await others;
    await cluster.network.connect(third.host, true, signal);
    lost.abort();
    await cutting;
  });

  await t.test('NATS is gone: nodes go to the registry, and find it again by themselves', async () => {
    cluster.killNats();
    while ((await first.figures(alone, signal)).up) await sleep(50, undefined, { signal });
    await same([first, second], alone);
    await cluster.restartNats(signal);
    while (!(await first.figures(alone, signal)).up) await sleep(50, undefined, { signal });
    const [late] = await same([fourth, first], alone);
    assert.ok(late);
  });
});
