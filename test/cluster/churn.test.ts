import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HINDRANCES, playOut } from './fault-scenarios.ts';
import { sharedLayer } from './shared-layer.ts';
import { TestCluster } from './test-cluster.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';
const LINK = { bitsPerS: 100_000_000 };
/** Whatever happens a start has ended after this; the bench measures how soon. */
const ENDED_S = 60;

test('starts end with the right bytes when links, disks and peers are bad and nodes come and go, and the registry is not read more often than that explains', {
  skip,
}, async (t) => {
  const { signal } = t;
  const layers = await Promise.all(HINDRANCES.map(async () => await sharedLayer(16, 250_000, signal)));
  await using cluster = await TestCluster.start({ nodes: 4, link: LINK, layers }, signal);
  for (const [i, scenario] of HINDRANCES.entries()) {
    await t.test(scenario.name, async () => {
      const layer = layers[i];
      assert.ok(layer);
      const { lastS, registryReads, allowed, details } = await playOut(scenario, cluster, layer, LINK, signal);
      assert.ok(lastS < ENDED_S, `the slowest start took ${lastS} s: ${details}`);
      assert.ok(
        registryReads <= allowed,
        `the registry gave ${registryReads} of the layer, not ${allowed}: ${details}`,
      );
    });
  }
});
