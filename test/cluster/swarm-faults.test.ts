import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { test } from 'node:test';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { runTool } from '#test/images/tool.ts';
import { CountedRegistry } from './counted-registry.ts';
import { localCluster } from './local-cluster.ts';
import { truncate } from './misbehaviour.ts';
import { sharedLayer } from './shared-layer.ts';
import type { SharingNode } from './sharing-node.ts';

const NO_ROOT = process.getuid?.() === 0 ? false : 'needs root, to mount a small disk';

test('an image that shares its base with one that nodes have costs the registry only what is new', async ({
  signal,
}) => {
  const [base, old, fresh] = await Promise.all(
    [12, 4, 4].map(async (files) => await sharedLayer(files, 300_000, signal)),
  );
  assert.ok(base && old && fresh);
  await using registry = await CountedRegistry.start([base, old, fresh]);
  await using cluster = await localCluster(signal);
  const start = async (node: SharingNode, layers: readonly (typeof base)[]) =>
    await Promise.all(layers.map(async (layer) => await node.fetchAll(registry.reference(layer), signal)));
  const having = await cluster.node();
  await start(having, [base, old]);
  const others = [await cluster.node(), await cluster.node()];
  // Each node reads by itself how the layer is made.
  await Promise.all(others.map(async (node) => await node.provide(registry.reference(base), signal)));
  const before = registry.bytesOf(base);
  const nodes = [having, ...others];
  await Promise.all(nodes.map(async (node) => await start(node, [base, fresh])));
  assert.equal(registry.bytesOf(base), before);
  assert.ok(registry.bytesOf(fresh) >= fresh.blob.length / 2);
  for (const layer of [base, fresh]) {
    const digests = await Promise.all(nodes.map(async (node) => await node.imageDigest(layer.digest, signal)));
    assert.equal(new Set(digests).size, 1);
  }
});

test('what peers leave off within a span comes from elsewhere, and the node goes on', async ({ signal }) => {
  const layer = await sharedLayer(8, 300_000, signal);
  await using registry = await CountedRegistry.start([layer]);
  await using cluster = await localCluster(signal);
  const reference = registry.reference(layer);
  const peers = [await cluster.node(), await cluster.node()] as const;
  for (const peer of peers) await peer.fetchAll(reference, signal);
  using ending = truncate(peers[0], 'ends');
  using breaking = truncate(peers[1], 'breaks');
  const expected = await peers[0].imageDigest(layer.digest, signal);
  const node = await cluster.node();
  await node.fetchAll(reference, signal);
  assert.equal(await node.imageDigest(layer.digest, signal), expected);
  assert.ok(ending.count + breaking.count > 0);
  assert.equal(node.statistics.figures(layer.digest).bytesBySource.peer, 0);

  // It is as good a peer as any.
  const late = await cluster.node();
  await late.fetchAll(reference, signal);
  assert.equal(await late.imageDigest(layer.digest, signal), expected);
  assert.ok(late.statistics.figures(layer.digest).bytesBySource.peer > 0);
});

test('a node whose disk is full tells its readers so, and keeps no other from starting', { skip: NO_ROOT }, async ({
  signal,
}) => {
  const layer = await sharedLayer(16, 300_000, signal);
  await using registry = await CountedRegistry.start([layer]);
  await using folder = await TempFolder.create('c');
  const dataDir = folder.join('full');
  await mkdir(dataDir);
  await runTool('mount', ['-t', 'tmpfs', '-o', 'size=1536k', 'tmpfs', dataDir], signal);
  await using cluster = await localCluster(signal);
  const reference = registry.reference(layer);
  const full = await cluster.node({ dataDir });
  const others = [await cluster.node(), await cluster.node()];
  await Promise.all([full, ...others].map(async (node) => await node.provide(reference, signal)));
  const before = registry.bytes;
  const failing = assert.rejects(full.imageDigest(layer.digest, signal), {
    name: 'LayerReadError',
    code: 'no-space',
    message: /the disk is full and nothing can be evicted; free space on it/,
  });
  await Promise.all([failing, ...others.map(async (node) => await node.fetchAll(reference, signal))]);
  const digests = await Promise.all(others.map(async (node) => await node.imageDigest(layer.digest, signal)));
  assert.equal(new Set(digests).size, 1);
  const read = registry.bytes - before;
  assert.ok(read <= 3 * layer.blob.length, `${read} bytes of ${layer.blob.length} were read from the registry`);

  // It ends as any other, and starts again with the disk as full as it was.
  await full[Symbol.asyncDispose]();
  const again = await cluster.node({ dataDir });
  const held = again.store.layers.get(layer.digest);
  assert.ok(held !== undefined && !held.complete);
  await runTool('mount', ['-o', 'remount,size=64m', dataDir], signal);
  await again.fetchAll(reference, signal);
  assert.ok(digests.includes(await again.imageDigest(layer.digest, signal)));
});
