import { mkdir, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import packageJson from '#package' with { type: 'json' };
import type { Bus } from '#shared/bus/bus.ts';
import { openBus } from '#shared/bus/open-bus.ts';
import { SettingsError } from '#shared/config/settings.ts';
import { ContainerdClient } from '#shared/containerd/containerd-client.ts';
import { ClusterIndexes } from '#shared/indexes/cluster-indexes.ts';
import type { IndexSource } from '#shared/indexes/index-source.ts';
import { RegistryIndexes } from '#shared/indexes/registry-indexes.ts';
import { AllowedRepositories } from '#shared/registry/allowed-repositories.ts';
import { hostPlatform } from '#shared/registry/platform.ts';
import { openRegistryClient } from '#shared/registry/open-registry.ts';
import { createMetrics, serveMetrics } from '#shared/telemetry/metrics.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import { fuseDirOf, type AgentValues } from './config.ts';
import type { EmbeddedServices } from './embedded-services.ts';
import { agentControl } from './control/agent-control.ts';
import { ControlServer } from './control/control-server.ts';
import { openDeviceSession } from './fuse/device-session.ts';
import type { DiskSpace, FuseEvents, FuseSession } from './fuse/fuse-session.ts';
import { subscribeToImages } from './images/image-subscriber.ts';
import { LazyPull } from './images/lazy-pull.ts';
import type { KeeperLink } from './keeper/keeper-link.ts';
import { LayerMounts } from './layers/layer-mounts.ts';
import { LayerStatistics } from './layers/layer-statistics.ts';
import { LayerStore } from './layers/layer-store.ts';
import { RegistrySource } from './layers/registry-source.ts';
import { BlobStreamer } from './layers/blob-streamer.ts';
import { WorkerPool } from './layers/worker-pool.ts';
import { LayerHolder } from './peers/layer-holder.ts';
import type { Peers, PeersOptions } from './peers/peers.ts';
import { MemoryTrimmer } from './memory-trimmer.ts';
import { createMounter } from './mounts/mounter.ts';
import { SnapshotFolders } from './snapshots/snapshot-folders.ts';
import { SnapshotServer } from './snapshots/snapshot-server.ts';
import { SnapshotService } from './snapshots/snapshot-service.ts';
import { SnapshotStore } from './snapshots/snapshot-store.ts';
import { wallClock } from './snapshots/wall-clock.ts';

/** How often statfs's numbers are refreshed; they are asked for in a place that must not wait. */
const DISK_SPACE_MS = 5_000;
/** Longer than a keeper takes from unmounting to the signal. */
const SESSION_GRACE_MS = 2_000;
const SQLITE_BUSY = 5;
/** Below the keeper's patience with an agent that is not ready. */
const DATABASE_WAIT_MS = 10_000;
const DATABASE_RETRY_MS = 20;

/**
 * The node agent: builds every part, top to bottom, and serves until `signal` aborts. Resolves when all is closed and written.
 * Mounts stay: containers go on with complete layers, and wait for the next agent where they are not.
 */
export async function runAgent(
  values: AgentValues,
  link: KeeperLink | undefined,
  logger: Logger,
  signal: AbortSignal,
  embedded?: EmbeddedServices,
): Promise<void> {
  const { dataDir } = values;
  // Until the keeper says so, another agent holds the database, the sockets and the caches.
  if (link !== undefined) await link.waitForGo(signal);
  const startMs = performance.now();
  await using closing = new AsyncDisposableStack();
  await mkdir(dataDir, { recursive: true, mode: 0o711 });

  const metrics = createMetrics();
  const registry = openRegistryClient(values, logger);
  closing.defer(() => registry.close());
  let bus = await openClusterBus(values, logger);
  if (bus !== undefined) closing.use(bus);
  const clusterIndexes: IndexSource = {
    find: async (request, ends) => (bus === undefined ? undefined : await new ClusterIndexes(bus).find(request, ends)),
  };
  const trusted = new AllowedRepositories(values.trustedIndexes);
  const statistics = new LayerStatistics({ metrics, logger });
  const workers = new WorkerPool({ size: values.workers });
  closing.defer(() => workers.close());
  const trimmer = new MemoryTrimmer(() => workers.activity, logger);
  closing.defer(() => trimmer.stop());
  const mounts = new LayerMounts(join(dataDir, 'm'), createMounter());
  const fuseDir = link?.fuse?.directory ?? fuseDirOf(dataDir);
  const registrySource = new RegistrySource(registry);
  const holder = new LayerHolder();
  const peers = await openPeers(values, bus, { holder, registry, source: registrySource, metrics, logger });
  if (peers !== undefined) closing.use(peers);
  const store = new LayerStore({
    dataDir,
    fuseDir,
    mounts,
    workers,
    registry,
    indexes: [
      ...(bus === undefined && embedded === undefined ? [] : [clusterIndexes]),
      ...(trusted.isEmpty ? [] : [new RegistryIndexes(registry, trusted)]),
    ],
    streamed: new BlobStreamer({ registry, keepIndex: values.natsUrl !== undefined }),
    publishIndex: async (layer, index, ends) => {
      if (values.natsUrl !== undefined && bus !== undefined) await new ClusterIndexes(bus).publish(layer, index, ends);
    },
    sources: [...(peers === undefined ? [] : [peers.source]), registrySource],
    statistics,
    logger,
    limits: {
      backgroundRate: values.backgroundRate,
      quietMs: values.backgroundQuietMs,
      giveUpMs: values.readDeadlineMs,
    },
    quotaBytes: values.quotaBytes,
    background: values.background,
  });
  await store.start(signal);
  closing.defer(() => store.close());
  holder.attach(store);
  peers?.announce();

  const space = await DiskWatch.start(dataDir);
  closing.defer(() => space.stop());
  const session = await openSession(link, fuseDir, store, fuseEvents(space, logger), signal);
  closing.defer(() => session.close());
  void session.closed.then(() => {
    // A keeper that ends takes the session away before it tells us.
    setTimeout(() => {
      if (!signal.aborted)
        logger.error({ directory: session.directory }, 'The FUSE session has ended: reads of lazy layers fail');
    }, SESSION_GRACE_MS).unref();
  });

  const snapshots = new SnapshotService({
    store: await whenUnlocked(() => new SnapshotStore(join(dataDir, 'snapshots.db'), wallClock), signal),
    folders: new SnapshotFolders(join(dataDir, 's')),
    layers: store,
    logger,
    metrics,
  });
  closing.defer(() => snapshots.close());

  await snapshots.start(signal);
  if (bus === undefined && embedded !== undefined) {
    bus = closing.use(await whenUnlocked(async () => await embedded.openBus(), signal));
  }
  const server =
    link?.heldSocket === values.socket
      ? SnapshotServer.accept(snapshots, link, logger)
      : await SnapshotServer.listen(snapshots, values.socket, logger);
  closing.defer(() => server.close());

  let ready = true;
  closing.defer(() => {
    ready = false;
  });
  statistics.watch(metrics, () => {
    const layers = [...store.layers.values()];
    const complete = layers.filter((layer) => layer.complete).length;
    return { layers: layers.length, mounted: mounts.count, complete, diskBytes: store.diskBytes };
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
    return new LazyPull({ registry, containerd, snapshots, snapshotter: values.snapshotter, logger });
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
      reload: () => {
        if (link === undefined) throw new Error('Cannot reload: this agent was started without a keeper');
        process.kill(process.ppid, 'SIGUSR2');
      },
      events: bus?.events,
    }),
    logger,
  );
  closing.defer(() => control.close());
  if (values.metrics !== undefined) {
    const http = await serveMetrics(metrics, values.metrics, () => ready);
    closing.defer(() => void http.close());
  }

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
  link?.ready();
  // Only now: what takes over from a killed agent has readers waiting, and needs the processor for itself.
  workers.warm(2);
  logger.info(
    {
      socket: values.socket,
      layers: store.layers.size,
      transport: session.transport,
      ms: Math.round(performance.now() - startMs),
    },
    'Ready',
  );
  // A crash between a mount and its snapshot's commit leaves a mount that nobody will release.
  const needed = snapshots.layers();
  for (const layer of store.layers.keys()) {
    if (mounts.sourceOf(layer) !== undefined && !needed.has(layer)) await store.release(layer, signal);
  }
  await aborted(signal);
  logger.info('Closing');
}

/**
 * Opens a database. An agent that was killed within a call on its own mounts holds it until that call is answered: by us, so the
 * session is served before, and the loop stays free while we wait.
 */
async function whenUnlocked<T>(open: () => T | Promise<T>, signal: AbortSignal): Promise<T> {
  const deadline = performance.now() + DATABASE_WAIT_MS;
  for (;;) {
    try {
      return await open();
    } catch (error) {
      const busy = error instanceof Error && 'errcode' in error && error.errcode === SQLITE_BUSY;
      if (!busy || performance.now() > deadline) throw error;
      await sleep(DATABASE_RETRY_MS, undefined, { signal });
    }
  }
}

/** undefined on a single node. */
async function openClusterBus(values: AgentValues, logger: Logger): Promise<Bus | undefined> {
  if (values.natsUrl === undefined) return undefined;
  return await openBus(values, `kindling-node-${values.nodeName}`, undefined, logger);
}

/** undefined where nothing is shared. A node that cannot give goes on without sharing: starts matter more. */
async function openPeers(
  values: AgentValues,
  bus: Bus | undefined,
  parts: Pick<PeersOptions, 'holder' | 'registry' | 'source' | 'metrics' | 'logger'>,
): Promise<Peers | undefined> {
  if (bus === undefined || !values.peers) return undefined;
  // Loaded only where it is used, as the bus.
  const { Peers } = await import('./peers/peers.ts');
  try {
    return await Peers.open({ ...parts, values, bus, nodeName: values.nodeName });
  } catch (error) {
    if (error instanceof SettingsError) throw error;
    parts.logger.error({ err: error }, 'Cannot listen for other nodes: nothing is shared; see KINDLING_PEER_LISTEN');
    return undefined;
  }
}

async function openSession(
  link: KeeperLink | undefined,
  directory: string,
  files: LayerStore,
  events: FuseEvents,
  signal: AbortSignal,
): Promise<FuseSession> {
  if (link?.fuse !== undefined) return openDeviceSession({ ...link.fuse, files, events });
  await mkdir(directory, { recursive: true });
  // Its native library is loaded only where it is used.
  const { openNativeSession } = await import('./fuse/native-session.ts');
  return await openNativeSession({ directory, files, events }, signal);
}

function fuseEvents(space: DiskWatch, logger: Logger): FuseEvents {
  return {
    diskSpace: () => space.now,
    unknownFile: (inode) => {
      logger.error(
        { inode: String(inode) },
        'The kernel has a layer image open that is not on disk any more: its readers get EIO',
      );
    },
    readFailed: (file, offset, length, error) => {
      logger.error({ file: file.name, offset, length, err: error }, 'A read failed: its reader gets EIO');
    },
  };
}

/** The disk's size, known without asking. */
class DiskWatch {
  now: DiskSpace = { totalBytes: 0, freeBytes: 0 };
  #timer: NodeJS.Timeout | undefined;

  static async start(folder: string): Promise<DiskWatch> {
    const watch = new DiskWatch();
    await watch.#refresh(folder);
    watch.#timer = setInterval(() => void watch.#refresh(folder), DISK_SPACE_MS).unref();
    return watch;
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  async #refresh(folder: string): Promise<void> {
    try {
      const { bsize, blocks, bavail } = await statfs(folder);
      this.now = { totalBytes: bsize * blocks, freeBytes: bsize * bavail };
    } catch {
      // The numbers stay as they were: nothing depends on them but `df`.
    }
  }
}

async function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
}
