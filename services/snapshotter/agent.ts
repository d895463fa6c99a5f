import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Bus } from '#shared/bus/bus.ts';
import { openBus } from '#shared/bus/open-bus.ts';
import { SettingsError } from '#shared/config/settings.ts';
import { ClusterIndexes } from '#shared/indexes/cluster-indexes.ts';
import type { IndexSource } from '#shared/indexes/index-source.ts';
import { RegistryIndexes } from '#shared/indexes/registry-indexes.ts';
import { SociIndexes } from '#shared/indexes/soci-indexes.ts';
import { AllowedRepositories } from '#shared/registry/allowed-repositories.ts';
import { openRegistryClient } from '#shared/registry/open-registry.ts';
import { createMetrics } from '#shared/telemetry/metrics.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import type { AgentValues } from './config.ts';
import { fuseDirOf } from './data-folder.ts';
import type { EmbeddedServices } from './embedded-services.ts';
import type { FirstReads } from './first-reads.ts';
import { openDeviceSession } from './fuse/device-session.ts';
import type { FuseSession } from './fuse/fuse-session.ts';
import type { KeeperLink } from './keeper/keeper-link.ts';
import { loadInParts } from './load-in-parts.ts';
import { LayerMounts } from './layers/layer-mounts.ts';
import { LayerStatistics } from './layers/layer-statistics.ts';
import { LayerStore } from './layers/layer-store.ts';
import { RegistrySource } from './layers/registry-source.ts';
import { StreamSource } from './layers/stream-source.ts';
import { BlobStreamer } from './layers/blob-streamer.ts';
import { WorkerPool } from './layers/worker-pool.ts';
import { LayerHolder } from './peers/layer-holder.ts';
import type { Peers, PeersOptions } from './peers/peers.ts';
import { createMounter } from './mounts/mounter.ts';
import { SessionEvents } from './session-events.ts';

/** Longer than a keeper takes from unmounting to the signal. */
const SESSION_GRACE_MS = 2_000;

/** containerd waits this much longer at most, where readers wait for a registry that takes its time. */
const READERS_FIRST_MS = 300;

/** The larger parts of what NodeServices take. */
const SERVICES_PARTS = [
  () => import('#shared/containerd/containerd-client.ts'),
  () => import('./control/agent-control.ts'),
  () => import('./snapshots/snapshot-server.ts'),
] as const;

/** How the agent came to run. */
export interface AgentStart {
  readonly link: KeeperLink | undefined;
  /** Serves readers already; undefined: nobody waits. */
  readonly first: FirstReads | undefined;
}

/**
 * The node agent: builds every part, top to bottom, and serves until `signal` aborts. Resolves when all is closed and written.
 * Mounts stay: containers go on with complete layers, and wait for the next agent where they are not.
 *
 * Here is what readers need; the rest, in NodeServices, is loaded when they are served.
 */
export async function runAgent(
  values: AgentValues,
  start: AgentStart,
  logger: Logger,
  signal: AbortSignal,
  embedded?: EmbeddedServices,
): Promise<void> {
  const { dataDir } = values;
  const { link, first } = start;
  await using closing = new AsyncDisposableStack();
  await mkdir(dataDir, { recursive: true, mode: 0o711 });

  const events = first?.events ?? new SessionEvents(dataDir);
  closing.defer(() => events.stop());
  events.logTo(logger);
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
  const workers = first?.workers ?? new WorkerPool({ size: values.workers });
  workers.resize(values.workers);
  closing.defer(() => workers.close());
  const mounts = new LayerMounts(join(dataDir, 'm'), createMounter());
  const fuseDir = link?.fuse?.directory ?? fuseDirOf(dataDir);
  const registrySource = new StreamSource(new RegistrySource(registry), registry);
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
    ztocs: trusted.isEmpty ? undefined : new SociIndexes(registry, trusted),
    streamed: new BlobStreamer({ registry, keepIndex: values.natsUrl !== undefined }),
    claims: bus?.claims,
    publishIndex: async (layer, index, ends) => {
      if (values.natsUrl !== undefined && bus !== undefined) await new ClusterIndexes(bus).publish(layer, index, ends);
    },
    sources: [...(peers === undefined ? [] : [peers.source]), registrySource],
    statistics,
    logger,
    limits: {
      backgroundRate: values.backgroundRate,
      quietMs: values.backgroundQuietMs,
      // Off, nothing is fetched that nobody reads.
      ...(values.background ? {} : { tailBytes: 0 }),
      giveUpMs: values.readDeadlineMs,
    },
    quotaBytes: values.quotaBytes,
    background: values.background,
  });
  await store.start(signal);
  closing.defer(() => store.close());
  first?.layers.handOver(store);
  const session = first?.session ?? (await openSession(link, fuseDir, store, events, signal));
  closing.defer(() => session.close());
  const allReadsMs = performance.now();
  holder.attach(store);
  peers?.announce();
  void session.closed.then(() => {
    // A keeper that ends takes the session away before it tells us.
    setTimeout(() => {
      if (!signal.aborted)
        logger.error({ directory: session.directory }, 'The FUSE session has ended: reads of lazy layers fail');
    }, SESSION_GRACE_MS).unref();
  });

  // Who has waited since the last agent ended has waited long enough: loading what is next would keep the loop busy.
  if (first !== undefined) {
    await Promise.race([first.layers.waitersAnswered(), sleep(READERS_FIRST_MS)]);
    await loadInParts(SERVICES_PARTS);
  }
  const { NodeServices } = await import('./node-services.ts');
  const services = closing.use(
    await NodeServices.open(
      { values, link, logger, metrics, registry, store, mounts, statistics, workers, session, bus, embedded },
      signal,
    ),
  );
  // Of an embedded node: from now on its indexes are looked for, too.
  bus = services.bus;
  link?.ready();
  logger.info(
    {
      socket: values.socket,
      layers: store.layers.size,
      transport: session.transport,
      // Since the start of the process: reads of what is here, all reads, everything.
      firstReadsMs: Math.round(first?.atMs ?? allReadsMs),
      firstReads: first?.layers.served,
      allReadsMs: Math.round(allReadsMs),
      ms: Math.round(performance.now()),
      cpuMs: Math.round((process.cpuUsage().user + process.cpuUsage().system) / 1000),
    },
    'Ready',
  );
  // Only now: what takes over from a killed agent needs the processor for itself.
  workers.warm(2);
  await services.run(signal);
  logger.info('Closing');
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
  events: SessionEvents,
  signal: AbortSignal,
): Promise<FuseSession> {
  if (link?.fuse !== undefined) return openDeviceSession({ ...link.fuse, files, events });
  await mkdir(directory, { recursive: true });
  // Its native library is loaded only where it is used.
  const { openNativeSession } = await import('./fuse/native-session.ts');
  return await openNativeSession({ directory, files, events }, signal);
}
