import assert from 'node:assert/strict';
import { test } from 'node:test';
import { sha256 } from '#shared/digest/digest.ts';
import { Evictor, type Evictable } from './evictor.ts';

function setup(quotaBytes: number, sizes: readonly number[], mounted: readonly number[] = []) {
  const layers = new Set<Evictable & { readonly at: number }>();
  for (const [at, diskBytes] of sizes.entries()) layers.add({ at, layer: sha256(Buffer.of(at)), diskBytes });
  const evictor = new Evictor({
    quotaBytes,
    layers: () => layers,
    mayEvict: ({ at }) => !mounted.includes(at),
    remove: (layer) => {
      layers.delete(layer);
      return Promise.resolve();
    },
  });
  for (const { layer, at } of layers) evictor.used(layer, 1000 - at);
  return { evictor, left: () => Array.from(layers, ({ at }) => at) };
}

test('over the quota, what was not used for longest goes first, and only as much as needed', async () => {
  const { evictor, left } = setup(100, [40, 40, 40]);
  await evictor.keepQuota();
  assert.deepEqual(left(), [0, 1]);
  assert.equal(evictor.allows(20), true);
  assert.equal(evictor.allows(21), false);
});

test('what is mounted stays, also over the quota', async () => {
  const { evictor, left } = setup(50, [40, 40, 40], [1, 2]);
  await evictor.keepQuota();
  assert.deepEqual(left(), [1, 2]);
  await evictor.keepQuota();
  assert.deepEqual(left(), [1, 2]);
});

test('a full disk costs one layer for each request, and says when there is none', async () => {
  const { evictor, left } = setup(0, [1, 1, 1], [0]);
  assert.deepEqual(await Promise.all([evictor.makeRoom(), evictor.makeRoom(), evictor.makeRoom()]), [
    true,
    true,
    false,
  ]);
  assert.deepEqual(left(), [0]);
});
