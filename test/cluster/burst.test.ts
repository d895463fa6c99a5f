import assert from 'node:assert/strict';
import { test } from 'node:test';
import { sharedLayer } from './shared-layer.ts';
import { TestCluster } from './test-cluster.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';
const LINK = { bitsPerS: 200_000_000 };

test('four nodes on links of their own start at once: the registry is read once', { skip }, async ({ signal }) => {
  const layer = await sharedLayer(32, 400_000, signal);
  await using cluster = await TestCluster.start({ nodes: 4, link: LINK, layers: [layer] }, signal);
  const reference = cluster.reference(layer);
  await Promise.all(cluster.nodes.map(async (node) => await node.provide(reference, signal)));
  const fetched = await Promise.all(cluster.nodes.map(async (node) => await node.fetchAll(reference, signal)));
  assert.equal(new Set(fetched.map(({ digest }) => digest)).size, 1);
  // Alone each would read it all. Once in four is what it is; a machine that stands still at times makes leases run out.
  const read = fetched.reduce((sum, { registry }) => sum + registry, 0);
  assert.ok(
    read < 2 * layer.sizeBytes,
    `${read} bytes of ${layer.sizeBytes} from the registry: ${JSON.stringify(fetched)}`,
  );
});
