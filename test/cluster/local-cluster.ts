import { spawnSync } from 'node:child_process';
import { runDistributor } from '#services/distributor/service.ts';
import { WorkerPool } from '#services/snapshotter/layers/worker-pool.ts';
import type { Bus } from '#shared/bus/bus.ts';
import { LocalBus } from '#shared/bus/local-bus.ts';
import { NatsBus } from '#shared/bus/nats-bus.ts';
import { NatsProcess } from '#shared/bus/nats-process.ts';
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
import { TestRedis } from '#test/harness/redis.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { SharingNode, type SharingNodeOptions } from './sharing-node.ts';

const VIEW_MS = 10_000;
/** Of indexes. */
const OBJECT_BYTES = 64 * 1024 * 1024;

/** NATS and Redis, for a cluster whose nodes and distributor have nothing but them in common. */
export class RealServers implements AsyncDisposable {
  readonly natsUrl: string;
  readonly redisUrl: string;
  readonly #closing: AsyncDisposableStack;

  private constructor(natsUrl: string, redisUrl: string, closing: AsyncDisposableStack) {
    this.natsUrl = natsUrl;
    this.redisUrl = redisUrl;
    this.#closing = closing;
  }

  /** Why there can be none here, or false. */
  static missing(): string | false {
    if (spawnSync('redis-server', ['--version'], { stdio: 'ignore' }).error) return 'redis-server is not installed';
    return NatsProcess.missing();
  }

  static async start(signal: AbortSignal): Promise<RealServers> {
    await using closing = new AsyncDisposableStack();
    const nats = closing.use(await NatsProcess.start());
    const redis = closing.use(await TestRedis.start(signal));
    return new RealServers(nats.url, redis.url, closing.move());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#closing.disposeAsync();
  }
}

/** Within one process: bus, distributor, nodes; real sockets between them. With `servers` each of them has a bus of its own. */
export async function localCluster(signal: AbortSignal, registries: readonly string[] = ['*'], servers?: RealServers) {
  await using closing = new AsyncDisposableStack();
  const folder = closing.use(await TempFolder.create('c'));
  const open = (clientName: string): Bus =>
    servers === undefined
      ? new LocalBus()
      : new NatsBus({ url: servers.natsUrl, clientName, logger: silentLogger, replicas: 1, objectBytes: OBJECT_BYTES });
  const bus = closing.use(open('distributor'));
  const workers = new WorkerPool({ size: 3 });
  closing.defer(() => workers.close());
  const ends = new AbortController();
  const client = new RegistryClient();
  const distributorMetrics = new Registry();
  const values = { redisUrl: servers?.redisUrl, registries: [...registries] };
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
      const own = servers === undefined ? bus : kept.use(open(name));
      const common = { name, dataDir: folder.join(name), bus: own, workers };
      return kept.use(await SharingNode.start({ ...common, ...options }, signal));
    },
    stopDistributor: async () => {
      ends.abort();
      await distributor;
    },
    [Symbol.asyncDispose]: async () => await kept.disposeAsync(),
  };
}
