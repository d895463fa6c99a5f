import type { Bus } from '#shared/bus/bus.ts';
import { loadSettings } from '#shared/config/settings.ts';
import { sha256, type Digest } from '#shared/digest/digest.ts';
import { RegistryClient } from '#shared/registry/registry-client.ts';
import { ClusterIndexes } from '#shared/indexes/cluster-indexes.ts';
import type { IndexSource } from '#shared/indexes/index-source.ts';
import type { SpanMap } from '#shared/layer/span-map.ts';
import type { CredentialSource } from '#shared/registry/credentials.ts';
import { silentLogger, type Logger } from '#shared/telemetry/logger.ts';
import { Registry } from '#shared/telemetry/metrics.ts';
import type { FetchLimits } from '#services/snapshotter/layers/fetch-pace.ts';
import { BlobStreamer } from '#services/snapshotter/layers/blob-streamer.ts';
import { LayerMounts } from '#services/snapshotter/layers/layer-mounts.ts';
import { LayerStatistics } from '#services/snapshotter/layers/layer-statistics.ts';
import { LayerStore } from '#services/snapshotter/layers/layer-store.ts';
import { RegistrySource } from '#services/snapshotter/layers/registry-source.ts';
import { StreamSource } from '#services/snapshotter/layers/stream-source.ts';
import type { WorkerPool } from '#services/snapshotter/layers/worker-pool.ts';
import type { Mounter } from '#services/snapshotter/mounts/mounter.ts';
import { LayerHolder } from '#services/snapshotter/peers/layer-holder.ts';
import { peerSettings } from '#services/snapshotter/peers/peer-settings.ts';
import { Peers } from '#services/snapshotter/peers/peers.ts';

export interface SharingNodeOptions {
  readonly name: string;
  readonly dataDir: string;
  readonly bus: Bus;
  readonly workers: WorkerPool;
  /** `KINDLING_PEER_…` and zone. */
  readonly env?: Readonly<Record<string, string>>;
  readonly credentials?: CredentialSource;
  readonly logger?: Logger;
  readonly plainHttpHosts?: readonly string[];
  readonly indexes?: readonly IndexSource[];
  readonly limits?: Partial<FetchLimits>;
  /** Finds indexes in the cluster, and tells the cluster of those that it makes, as an agent does. */
  readonly sharesIndexes?: boolean;
}

export interface LayerReference {
  /** `host/path:tag` */
  readonly image: string;
  readonly digest: Digest;
  readonly sizeBytes: number;
  readonly mediaType: string;
  readonly annotations: Readonly<Record<string, string>>;
}

/** What of a layer a start reads. */
export interface LayerPart {
  readonly layer: LayerReference;
  /** Ranges [start, end) of the blob, whole spans, in the order in which a start asked for them. */
  readonly ranges: readonly (readonly [start: number, end: number])[];
}

/** A span that a start reads. */
export interface StartupSpan {
  readonly layer: Digest;
  readonly span: number;
  /** Of the blob. */
  readonly bytes: number;
}

/** Nothing is mounted: what is tested is how bytes come to the node. */
const NO_MOUNTS: Mounter = {
  mountErofs: () => Promise.resolve({ via: 'file' }),
  mount: () => Promise.resolve(),
  unmount: () => Promise.resolve(),
  mountsWithin: () => Promise.resolve([]),
};

/** A node's store of layers and its part in sharing them, as the agent builds them; no containerd, FUSE and mounts. */
export class SharingNode implements AsyncDisposable {
  readonly store: LayerStore;
  readonly peers: Peers;
  readonly metrics: Registry;
  readonly statistics: LayerStatistics;
  readonly holder: LayerHolder;
  readonly #closing: AsyncDisposableStack;

  private constructor(
    parts: Pick<SharingNode, 'store' | 'peers' | 'metrics' | 'statistics' | 'holder'>,
    closing: AsyncDisposableStack,
  ) {
    this.store = parts.store;
    this.peers = parts.peers;
    this.metrics = parts.metrics;
    this.statistics = parts.statistics;
    this.holder = parts.holder;
    this.#closing = closing;
  }

  static async start(options: SharingNodeOptions, signal: AbortSignal): Promise<SharingNode> {
    const { name, dataDir, bus, workers } = options;
    const logger = options.logger ?? silentLogger;
    await using closing = new AsyncDisposableStack();
    const metrics = new Registry();
    const registry = new RegistryClient({
      plainHttpHosts: options.plainHttpHosts ?? [],
      ...(options.credentials === undefined ? {} : { credentials: options.credentials }),
    });
    closing.defer(() => registry.close());
    const source = new StreamSource(new RegistrySource(registry), registry);
    const shared = options.sharesIndexes === true ? new ClusterIndexes(bus) : undefined;
    const holder = new LayerHolder();
    const values = loadSettings(peerSettings, { KINDLING_PEER_LISTEN: '127.0.0.1:0', ...options.env });
    const peers = closing.use(
      await Peers.open({ values, nodeName: name, bus, holder, registry, source, metrics, logger }),
    );
    const statistics = new LayerStatistics({ metrics, logger });
    const store = new LayerStore({
      dataDir,
      fuseDir: `${dataDir}/fuse`,
      mounts: new LayerMounts(`${dataDir}/m`, NO_MOUNTS),
      workers,
      registry,
      indexes: shared === undefined ? (options.indexes ?? []) : [shared],
      streamed: new BlobStreamer({ registry, keepIndex: shared !== undefined }),
      claims: shared === undefined ? undefined : bus.claims,
      publishIndex: async (layer, index, ends) => await shared?.publish(layer, index, ends),
      sources: [peers.source, source],
      statistics,
      logger,
      ...(options.limits === undefined ? {} : { limits: options.limits }),
      quotaBytes: 0,
      background: false,
    });
    await store.start(signal);
    closing.defer(() => store.close());
    holder.attach(store);
    peers.announce();
    return new SharingNode({ store, peers, metrics, statistics, holder }, closing.move());
  }

  /** Makes the layer ready and fetches all of it; resolves when every byte is here, verified. */
  async fetchAll(layer: LayerReference, signal: AbortSignal): Promise<void> {
    await this.provide(layer, signal);
    await this.#prefetch(layer.digest, undefined, signal);
  }

  /** What a start with a known profile does: makes the layers ready, fetches the parts that it reads, and waits for them. */
  async startUp(parts: readonly LayerPart[], signal: AbortSignal): Promise<readonly StartupSpan[]> {
    const spans = await Promise.all(
      parts.map(async ({ layer, ranges }) => {
        await this.provide(layer, signal);
        return await this.#prefetch(layer.digest, ranges, signal);
      }),
    );
    return spans.flat();
  }

  async #prefetch(
    layer: Digest,
    ranges: LayerPart['ranges'] | undefined,
    signal: AbortSignal,
  ): Promise<readonly StartupSpan[]> {
    const held = this.store.layers.get(layer);
    if (held === undefined) throw new Error(`${layer} was not made`);
    await held.open();
    const { map } = held;
    const wanted = spansWithin(map, ranges ?? [[0, map.blobSize]]);
    const list = wanted.map((span) => ({ layer, span, bytes: map.blobEnd(span) - map.blobStart(span) }));
    const missing = new Set(wanted.filter((span) => !held.has(span)));
    if (missing.size === 0) return list;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const stop = this.holder.onResident((other, span) => {
      if (other === layer && missing.delete(span) && missing.size === 0) resolve();
    });
    const onAbort = () => reject(signal.reason as Error);
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      await this.store.prefetch(layer, [...missing]);
      await promise;
    } finally {
      stop();
      signal.removeEventListener('abort', onAbort);
    }
    return list;
  }

  async provide(layer: LayerReference, signal: AbortSignal): Promise<void> {
    await this.store.provide(
      {
        imageReference: layer.image,
        layer: layer.digest,
        sizeBytes: layer.sizeBytes,
        mediaType: layer.mediaType,
        annotations: layer.annotations,
        manifest: undefined,
      },
      signal,
    );
  }

  /** Digest of what a start reads, as it lies in the layer images. */
  async startupDigest(parts: readonly LayerPart[], signal: AbortSignal): Promise<Digest> {
    const bytes: Uint8Array[] = [];
    for (const { layer, ranges } of parts) {
      const held = this.store.layers.get(layer.digest);
      if (held === undefined) throw new Error(`${layer.digest} is not here`);
      await held.open();
      for (const span of spansWithin(held.map, ranges)) {
        const start = held.map.imageStart(span);
        bytes.push(Buffer.from(await this.store.read(held, start, held.map.imageEnd(span) - start, signal)));
      }
    }
    return sha256(...bytes);
  }

  /** Digest of the layer image as a reader sees it. */
  async imageDigest(layer: Digest, signal: AbortSignal): Promise<Digest> {
    const held = this.store.layers.get(layer);
    if (held === undefined) throw new Error(`${layer} is not here`);
    const parts: Uint8Array[] = [];
    for (let at = 0; at < held.sizeBytes; at += 1 << 20) {
      parts.push(Buffer.from(await this.store.read(held, at, 1 << 20, signal)));
    }
    return sha256(...parts);
  }

  /** A metric's value; of one with labels the sum. */
  async metric(name: string, label: Readonly<Record<string, string>> = {}): Promise<number> {
    const metric = (await this.metrics.getMetricsAsJSON()).find((one) => one.name === name);
    const values = metric?.values ?? [];
    return values
      .filter(({ labels }) => Object.entries(label).every(([key, value]) => labels[key] === value))
      .reduce((sum, { value }) => sum + value, 0);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#closing.disposeAsync();
  }
}

/** Spans that lie wholly within ranges of the blob, in the order of the ranges. */
function spansWithin(map: SpanMap, ranges: LayerPart['ranges']): number[] {
  const spans = new Set<number>();
  for (const [start, end] of ranges) {
    for (let span = 0; span < map.spanCount; span++) {
      if (map.blobStart(span) >= start && map.blobEnd(span) <= end) spans.add(span);
    }
  }
  return [...spans];
}
