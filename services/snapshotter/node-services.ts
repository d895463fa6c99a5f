import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import packageJson from '#package' with { type: 'json' };
import type { Bus } from '#shared/bus/bus.ts';
import { ContainerdClient } from '#shared/containerd/containerd-client.ts';
import { hostPlatform } from '#shared/registry/platform.ts';
import type { RegistryClient } from '#shared/registry/registry-client.ts';
import { serveMetrics, type Registry } from '#shared/telemetry/metrics.ts';
import { stopped } from '#shared/service/stopped.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import type { AgentValues } from './config.ts';
import { agentControl } from './control/agent-control.ts';
import { ControlServer } from './control/control-server.ts';
import type { EmbeddedServices } from './embedded-services.ts';
import type { FuseSession } from './fuse/fuse-session.ts';
import { subscribeToImages } from './images/image-subscriber.ts';
import { LazyPull } from './images/lazy-pull.ts';
import { deleteLeasesOfLostPulls } from './images/left-leases.ts';
import type { KeeperLink } from './keeper/keeper-link.ts';
import type { LayerMounts } from './layers/layer-mounts.ts';
import type { LayerStatistics } from './layers/layer-statistics.ts';
import type { LayerStore } from './layers/layer-store.ts';
import type { WorkerPool } from './layers/worker-pool.ts';
import { MemoryTrimmer } from './memory-trimmer.ts';
import { SnapshotFolders } from './snapshots/snapshot-folders.ts';
import { SnapshotServer } from './snapshots/snapshot-server.ts';
import { SnapshotService } from './snapshots/snapshot-service.ts';
import { SnapshotStore } from './snapshots/snapshot-store.ts';
import { wallClock } from './snapshots/wall-clock.ts';

const SQLITE_BUSY = 5;
/** What containerd gets to answer in, where nobody waits for it. */
const CONTAINERD_MS = 10_000;
/** Below the keeper's patience with an agent that is not ready. */
const LEFT_WAIT_MS = 10_000;
const LEFT_RETRY_MS = 20;

export interface NodeParts {
  readonly values: AgentValues;
  readonly link: KeeperLink | undefined;
  readonly logger: Logger;
  readonly metrics: Registry;
  readonly registry: RegistryClient;
  readonly store: LayerStore;
  readonly mounts: LayerMounts;
  readonly statistics: LayerStatistics;
  readonly workers: WorkerPool;
  readonly session: FuseSession;
  /** The cluster's. */
  readonly bus: Bus | undefined;
  readonly embedded: EmbeddedServices | undefined;
}

/** What the agent does for others than readers: containerd's snapshots, pulls, control, metrics, events. */
export class NodeServices implements AsyncDisposable {
  /** The cluster's bus, or that of the embedded services. */
  readonly bus: Bus | undefined;
  readonly #parts: NodeParts;
  readonly #snapshots: SnapshotService;
  readonly #closing: AsyncDisposableStack;

  private constructor(
    parts: NodeParts,
    bus: Bus | undefined,
    snapshots: SnapshotService,
    closing: AsyncDisposableStack,
  ) {
    this.#parts = parts;
    this.bus = bus;
    this.#snapshots = snapshots;
    this.#closing = closing;
  }

  static async open(parts: NodeParts, signal: AbortSignal): Promise<NodeServices> {
    const { values, link, logger, metrics, registry, store, mounts, statistics, workers, session, embedded } = parts;
    const { dataDir } = values;
    await using closing = new AsyncDisposableStack();
    let ready = false;
    if (values.metrics !== undefined) {
      const address = values.metrics;
      const http = await whenLeft(async () => await serveMetrics(metrics, address, () => ready), signal);
      closing.defer(() => void http.close());
    }
    statistics.watch(metrics, () => {
      const layers = [...store.layers.values()];
      const complete = layers.filter((layer) => layer.complete).length;
      return { layers: layers.length, mounted: mounts.count, complete, diskBytes: store.diskBytes };
    });
    const trimmer = new MemoryTrimmer(() => workers.activity, logger);
    closing.defer(() => trimmer.stop());
    const snapshots = new SnapshotService({
      store: await whenLeft(() => new SnapshotStore(join(dataDir, 'snapshots.db'), wallClock), signal),
      folders: new SnapshotFolders(join(dataDir, 's')),
      layers: store,
      logger,
      metrics,
    });
    closing.defer(() => snapshots.close());
    await snapshots.start(signal);
    let { bus } = parts;
    if (bus === undefined && embedded !== undefined) {
      bus = closing.use(await whenLeft(async () => await embedded.openBus(), signal));
    }
    const server =
      link?.heldSocket === values.socket
        ? SnapshotServer.accept(snapshots, link, logger)
        : await SnapshotServer.listen(snapshots, values.socket, logger);
    closing.defer(() => server.close());
    ready = true;
    closing.defer(() => {
      ready = false;
    });

    const clients = new Map<string, ContainerdClient>();
    closing.defer(() => {
      for (const client of clients.values()) client.close();
    });
    const pullInto = (namespace: string) => {
      let containerd = clients.get(namespace);
      if (containerd === undefined) {
        containerd = new ContainerdClient({ address: values.containerd, namespace });
        clients.set(namespace, containerd);
      }
      return new LazyPull({
        registry,
        containerd,
        snapshots: snapshots.remote,
        snapshotter: values.snapshotter,
        logger,
      });
    };
    if (bus !== undefined) {
      closing.use(
        subscribeToImages({
          bus,
          nodeName: values.nodeName,
          repositories: values.subscribe,
          pull: (image, ends) => pullInto(values.namespace).pull(image, { platform: hostPlatform() }, ends),
          metrics,
          logger,
        }),
      );
    }
    const control = await ControlServer.listen(
      values.controlSocket,
      agentControl({
        version: packageJson.version,
        dataDir,
        snapshotter: values.snapshotter,
        namespace: values.namespace,
        quotaBytes: values.quotaBytes,
        fuse: session,
        store,
        mounts,
        statistics,
        snapshots,
        pullInto,
        ready: () => ready,
        events: bus?.events,
        reload: () => {
          if (link === undefined) throw new Error('Cannot reload: this agent was started without a keeper');
          process.kill(process.ppid, 'SIGUSR2');
        },
      }),
      logger,
    );
    closing.defer(() => control.close());

    if (bus !== undefined && embedded !== undefined) {
      const stop = new AbortController();
      const running = embedded.run({ bus, registry, metrics }, stop.signal).catch((error: unknown) => {
        // The node itself goes on: starts do not need them.
        logger.error({ err: error }, 'The services beside the agent have ended: events are not taken any more');
      });
      closing.defer(async () => {
        stop.abort();
        await running;
      });
    }
    return new NodeServices(parts, bus, snapshots, closing.move());
  }

  /** Until `signal` aborts. */
  async run(signal: AbortSignal): Promise<void> {
    const { store, mounts } = this.#parts;
    // A crash between a mount and its snapshot's commit leaves a mount that nobody will release.
    const needed = this.#snapshots.layers();
    for (const layer of store.layers.keys()) {
      if (mounts.sourceOf(layer) !== undefined && !needed.has(layer)) await store.release(layer, signal);
    }
    // Nor will anybody evict for a layer that was made just before.
    await store.keepQuota();
    await this.#forgetLostPulls(signal);
    await stopped(signal);
  }

  async #forgetLostPulls(signal: AbortSignal): Promise<void> {
    const { values, logger } = this.#parts;
    try {
      const bounded = AbortSignal.any([signal, AbortSignal.timeout(CONTAINERD_MS)]);
      const leases = await deleteLeasesOfLostPulls(values.containerd, bounded);
      if (leases > 0) logger.info({ leases }, 'Deleted the leases of pulls that an earlier agent did not end');
    } catch (error) {
      // Without containerd there is nothing to forget yet; the leases expire by themselves.
      logger.debug({ err: error }, 'Cannot look for the leases of pulls that an earlier agent did not end');
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#closing.disposeAsync();
  }
}

/**
 * Opens what one process at a time may have: a database, a port. An agent that was killed within a call on its own mounts has it until
 * that call is answered: by us, so the session is served before, and the loop stays free while we wait.
 */
async function whenLeft<T>(open: () => T | Promise<T>, signal: AbortSignal): Promise<T> {
  const deadline = performance.now() + LEFT_WAIT_MS;
  for (;;) {
    try {
      return await open();
    } catch (error) {
      if (!isHeld(error) || performance.now() > deadline) throw error;
      await sleep(LEFT_RETRY_MS, undefined, { signal });
    }
  }
}

function isHeld(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  return ('errcode' in error && error.errcode === SQLITE_BUSY) || ('code' in error && error.code === 'EADDRINUSE');
}
