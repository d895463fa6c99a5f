import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runDistributor } from '#services/distributor/service.ts';
import { WorkerPool } from '#services/snapshotter/layers/worker-pool.ts';
import type { Bus } from '#shared/bus/bus.ts';
import { LocalBus } from '#shared/bus/local-bus.ts';
import { RegistryClient } from '#shared/registry/registry-client.ts';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { Registry } from '#shared/telemetry/metrics.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { CountedRegistry } from './counted-registry.ts';
import { sharedLayer } from './shared-layer.ts';
import { SharingNode, type SharingNodeOptions } from './sharing-node.ts';

/** Within one process: bus, distributor, nodes; real sockets between them. */
async function rig(signal: AbortSignal, registries: readonly string[] = ['*']) {
  await using closing = new AsyncDisposableStack();
  const folder = closing.use(await TempFolder.create('c'));
  const bus: Bus = closing.use(new LocalBus());
  const workers = new WorkerPool({ size: 3 });
  closing.defer(() => workers.close());
  const ends = new AbortController();
  const client = new RegistryClient();
  const values = { redisUrl: undefined, registries: [...registries] };
  const distributor = runDistributor(
    values,
    { bus, registry: client, metrics: new Registry(), logger: silentLogger },
    ends.signal,
  );
  closing.defer(async () => {
    ends.abort();
    await distributor;
    await client.close();
  });
  let count = 0;
  const kept = closing.move();
  return {
    node: async (options: Partial<SharingNodeOptions> = {}): Promise<SharingNode> => {
      const name = `n${++count}`;
      return kept.use(await SharingNode.start({ name, dataDir: folder.join(name), bus, workers, ...options }, signal));
    },
    stopDistributor: async () => {
      ends.abort();
      await distributor;
    },
    [Symbol.asyncDispose]: async () => await kept.disposeAsync(),
  };
}

test('a burst of nodes costs the registry one read of each span, and all get the same bytes', async ({ signal }) => {
  const layer = await sharedLayer(24, 400_000, signal);
  await using registry = await CountedRegistry.start([layer]);
  await using cluster = await rig(signal);
  const nodes = await Promise.all(Array.from({ length: 6 }, async () => await cluster.node()));
  const reference = registry.reference(layer);
  await Promise.all(nodes.map(async (node) => await node.provide(reference, signal)));
  const before = registry.bytes;
  await Promise.all(nodes.map(async (node) => await node.fetchAll(reference, signal)));
  const amplification = (registry.bytes - before) / layer.blob.length;
  const digests = new Set(await Promise.all(nodes.map(async (node) => await node.imageDigest(layer.digest, signal))));
  assert.equal(digests.size, 1);
  const figures = await Promise.all(
    nodes.map(async (node) => [
      await node.metric('kindling_peer_received_bytes_total'),
      await node.metric('kindling_peer_registry_spans_total'),
      await node.metric('kindling_peer_hedged_total'),
    ]),
  );
  assert.ok(amplification < 1.2, `the registry was read ${amplification} times: ${JSON.stringify(figures)}`);
});
