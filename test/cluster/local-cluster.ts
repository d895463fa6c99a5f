import { runDistributor } from '#services/distributor/service.ts';
import { WorkerPool } from '#services/snapshotter/layers/worker-pool.ts';
import type { Bus } from '#shared/bus/bus.ts';
import { LocalBus } from '#shared/bus/local-bus.ts';
import {
  decodeMessage,
  DISTRIBUTION_VERSION,
  encodeMessage,
  SUBJECTS,
  viewReply,
} from '#shared/distribution/messages.ts';
import { RegistryClient } from '#shared/registry/registry-client.ts';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { Registry } from '#shared/telemetry/metrics.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { SharingNode, type SharingNodeOptions } from './sharing-node.ts';

const VIEW_MS = 10_000;

/** Within one process: bus, distributor, nodes; real sockets between them. */
export async function localCluster(signal: AbortSignal, registries: readonly string[] = ['*']) {
  await using closing = new AsyncDisposableStack();
  const folder = closing.use(await TempFolder.create('c'));
  const bus: Bus = closing.use(new LocalBus());
  const workers = new WorkerPool({ size: 3 });
  closing.defer(() => workers.close());
  const ends = new AbortController();
  const client = new RegistryClient();
  const distributorMetrics = new Registry();
  const values = { redisUrl: undefined, registries: [...registries] };
  const distributor = runDistributor(
    values,
    { bus, registry: client, metrics: distributorMetrics, logger: silentLogger },
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
    bus,
    distributorMetrics,
    /** What `kindling cluster` shows. */
    view: async () => {
      const request = encodeMessage({ version: DISTRIBUTION_VERSION });
      const reply = await bus.messages.request(SUBJECTS.view, request, VIEW_MS, signal);
      return decodeMessage(viewReply, reply, 'the view');
    },
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
