import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { sha256 } from '#shared/digest/digest.ts';
import { buildLayerIndex } from '#shared/formats/build-index.ts';
import { encodeLayerIndex } from '#shared/layer/index-codec.ts';
import type { IndexSource } from '#shared/indexes/index-source.ts';
import { fakeMember, fakeTar } from '#shared/layer/fake-layer.ts';
import { CountedRegistry, type CountedLayer } from './counted-registry.ts';
import { localCluster, RealServers } from './local-cluster.ts';
import type { SharingNodeOptions } from './sharing-node.ts';

const MiB = 1024 * 1024;
const NODES = 3;

function plainLayer(blob: Buffer, compression: string): CountedLayer {
  const mediaType = `application/vnd.oci.image.layer.v1.tar+${compression}`;
  return { blob, digest: sha256(blob), sizeBytes: blob.length, annotations: {}, mediaType };
}

/** A layer of one zstd frame, with more than is decoded from its front for each of its parts, and still a small blob; and its index. */
async function frameLayer(
  signal: AbortSignal,
): Promise<{ readonly layer: CountedLayer; readonly indexes: IndexSource[] }> {
  const text = fakeMember('text', 'file', Buffer.from('some text of a file\n'.repeat(1_500_000)));
  const noise = Array.from({ length: 8 }, (_, i) => fakeMember(`noise-${i}`, 'file', randomBytes(MiB)));
  const layer = plainLayer(zstdCompressSync(fakeTar([...noise.slice(4), text, ...noise.slice(0, 4)])), 'zstd');
  const source = {
    range: async (start: number, end: number) => layer.blob.subarray(start, end),
    stream: async function* () {
      yield layer.blob;
    },
  };
  const descriptor = { digest: layer.digest, size: layer.sizeBytes };
  const index = encodeLayerIndex(await buildLayerIndex(source, descriptor, { threads: 'one' }, signal));
  return { layer, indexes: [{ find: async () => index }] };
}

/** All nodes at once: the registry gives the blob once, and all get the same bytes. */
async function startTogether(
  layer: CountedLayer,
  options: Partial<SharingNodeOptions>,
  servers: RealServers | undefined,
  signal: AbortSignal,
): Promise<void> {
  await using registry = await CountedRegistry.start([layer]);
  await using cluster = await localCluster(signal, ['*'], servers);
  const nodes = await Promise.all(Array.from({ length: NODES }, async () => await cluster.node(options)));
  const reference = registry.reference(layer);
  // Without a distributor each would read for itself.
  while (!nodes.every((node) => node.peers.link.up)) await sleep(20, undefined, { signal });
  await Promise.all(nodes.map(async (node) => await node.fetchAll(reference, signal)));
  const digests = new Set(await Promise.all(nodes.map(async (node) => await node.imageDigest(layer.digest, signal))));
  assert.equal(digests.size, 1);
  // Once, but for a node that has waited too long in vain, as on a machine that has much else to do.
  assert.ok(registry.bytes <= 2 * layer.sizeBytes, `${registry.bytes} bytes of a blob of ${layer.sizeBytes}`);

  // Nobody to share with: by itself.
  if (options.indexes === undefined) return;
  await cluster.stopDistributor();
  const alone = await cluster.node(options);
  await alone.fetchAll(reference, signal);
  assert.ok(digests.has(await alone.imageDigest(layer.digest, signal)));
}

test('a node that reads a stream in no hurry hurries when a reader of another node waits for it', async ({
  signal,
}) => {
  const { layer, indexes } = await frameLayer(signal);
  await using registry = await CountedRegistry.start([layer]);
  await using cluster = await localCluster(signal);
  const reference = registry.reference(layer);
  // By itself it would take minutes.
  const idle = await cluster.node({ indexes, limits: { backgroundRate: 32 * 1024 } });
  const reading = await cluster.node({ indexes });
  for (const node of [idle, reading]) await node.provide(reference, signal);
  while (![idle, reading].every((node) => node.peers.link.up)) await sleep(20, undefined, { signal });
  const held = idle.store.layers.get(layer.digest);
  assert.ok(held);
  await held.open();
  await idle.store.prefetch(layer.digest, Array.from({ length: held.map.spanCount }).keys());
  while (registry.bytes === 0) await sleep(20, undefined, { signal });
  const digest = await reading.imageDigest(layer.digest, signal);
  assert.equal(await idle.imageDigest(layer.digest, signal), digest);
  // It has waited for the other, and not read by itself.
  assert.ok(registry.bytes < 1.5 * layer.sizeBytes, `${registry.bytes} bytes of a blob of ${layer.sizeBytes}`);
});

/** Nodes that have nothing in common but the servers of a cluster, as well as those of one process. */
for (const [kind, start] of [
  ['within one process', async () => undefined],
  ['over NATS and Redis', async (signal: AbortSignal) => await RealServers.start(signal)],
] as const) {
  const skip = kind === 'over NATS and Redis' ? RealServers.missing() : false;

  test(`${kind}: nodes that start a layer which nobody has indexed read its blob once, and wait for the index`, {
    skip,
  }, async ({ signal }) => {
    const members = Array.from({ length: 6 }, (_, i) => fakeMember(`noise-${i}`, 'file', randomBytes(MiB)));
    const layer = plainLayer(gzipSync(fakeTar(members), { level: 1 }), 'gzip');
    await using servers = await start(signal);
    await startTogether(layer, { sharesIndexes: true }, servers, signal);
  });

  test(`${kind}: nodes that start a layer of one zstd frame read its blob once, and all get the same bytes`, {
    skip,
  }, async ({ signal }) => {
    const { layer, indexes } = await frameLayer(signal);
    await using servers = await start(signal);
    await startTogether(layer, { indexes }, servers, signal);
  });
}
