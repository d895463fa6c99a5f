import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { sharedLayer } from './shared-layer.ts';
import type { LayerReference } from './sharing-node.ts';
import { TestCluster, type ClusterNode } from './test-cluster.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';
const LINK = { bitsPerS: 100_000_000 };
/** On which a burst lasts longer than a node takes to come back. */
const NARROW = { bitsPerS: 10_000_000 };
const SLOW = { bitsPerS: 1_000_000 };
const DEATHS = 3;

test('starts end with the right bytes on links that slow down, and while nodes come and go', { skip }, async (t) => {
  const { signal } = t;
  const layers = await Promise.all([0, 1].map(async () => await sharedLayer(16, 250_000, signal)));
  await using cluster = await TestCluster.start({ nodes: 4, link: LINK, layers }, signal);
  const [slowed, churned] = layers.map((layer) => cluster.reference(layer));
  const [first, second, third, fourth] = cluster.nodes;
  assert.ok(slowed && churned && first && second && third && fourth);
  const others = [first, second, third];
  /** Until the node has got something of the layer. */
  const begun = async (node: ClusterNode, layer: LayerReference, until: AbortSignal): Promise<void> => {
    for (;;) {
      const { peer, registry } = await node.figures(layer, signal);
      if (peer + registry > 0 || until.aborted) return;
      await sleep(10, undefined, { signal });
    }
  };

  await t.test('the link of the only node that has the layer slows down to 1 Mbit/s in mid-burst', async () => {
    const { digest } = await fourth.fetchAll(slowed, signal);
    const before = await cluster.registryBytes(signal);
    const burst = Promise.all(others.map(async (node) => await node.read(slowed, signal)));
    const slowing = begun(first, slowed, signal).then(
      async () => await cluster.network.shape(fourth.host, SLOW, signal),
    );
    const [read] = await Promise.all([burst, slowing]);
    const sent = (await cluster.registryBytes(signal)) - before;
    await cluster.network.shape(fourth.host, LINK, signal);
    for (const one of read) assert.equal(one.digest, digest);
    // What they had read alone, and packets' headers.
    assert.ok(sent < 3.5 * slowed.sizeBytes, `the registry sent ${sent} bytes for ${slowed.sizeBytes}`);
  });

  await t.test('a node is killed and comes back again and again', async () => {
    const hosts = [cluster.registry, ...cluster.nodes.map(({ host }) => host)];
    for (const host of hosts) await cluster.network.shape(host, NARROW, signal);
    const before = await cluster.registryBytes(signal);
    const burst = Promise.all(others.map(async (node) => await node.fetchAll(churned, signal)));
    for (let death = 0; death < DEATHS; death++) {
      const ended = new AbortController();
      const dying = fourth
        .fetchAll(churned, signal)
        .catch(() => undefined)
        .finally(() => ended.abort());
      await begun(fourth, churned, ended.signal);
      fourth.kill();
      await dying;
      await fourth[Symbol.asyncDispose]();
      await fourth.start(signal);
    }
    const fetched = await burst;
    await cluster.network.shape(fourth.host, LINK, signal);
    fetched.push(await fourth.fetchAll(churned, signal));
    const sent = (await cluster.registryBytes(signal)) - before;
    assert.equal(new Set(fetched.map(({ digest }) => digest)).size, 1);
    assert.ok(sent < 3 * churned.sizeBytes, `the registry sent ${sent} bytes for ${churned.sizeBytes}`);
  });
});
