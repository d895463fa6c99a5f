import { setTimeout as sleep } from 'node:timers/promises';
import type { Bus } from '#shared/bus/bus.ts';
import { loadSettings } from '#shared/config/settings.ts';
import { sha256, type Digest } from '#shared/digest/digest.ts';
import { RegistryClient } from '#shared/registry/registry-client.ts';
import type { CredentialSource } from '#shared/registry/credentials.ts';
import { silentLogger, type Logger } from '#shared/telemetry/logger.ts';
import { Registry } from '#shared/telemetry/metrics.ts';
import { BlobStreamer } from '#services/snapshotter/layers/blob-streamer.ts';
import { LayerMounts } from '#services/snapshotter/layers/layer-mounts.ts';
import { LayerStatistics } from '#services/snapshotter/layers/layer-statistics.ts';
import { LayerStore } from '#services/snapshotter/layers/layer-store.ts';
import { RegistrySource } from '#services/snapshotter/layers/registry-source.ts';
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
}

export interface LayerReference {
  /** `host/path:tag` */
  readonly image: string;
  readonly digest: Digest;
  readonly sizeBytes: number;
  readonly mediaType: string;
  readonly annotations: Readonly<Record<string, string>>;
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
  readonly #closing: AsyncDisposableStack;

  private constructor(
    parts: Pick<SharingNode, 'store' | 'peers' | 'metrics' | 'statistics'>,
    closing: AsyncDisposableStack,
  ) {
    this.store = parts.store;
    this.peers = parts.peers;
    this.metrics = parts.metrics;
    this.statistics = parts.statistics;
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
    const source = new RegistrySource(registry);
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
      indexes: [],
      streamed: new BlobStreamer({ registry, keepIndex: false }),
      publishIndex: () => Promise.resolve(),
      sources: [peers.source, source],
      statistics,
      logger,
      quotaBytes: 0,
      background: false,
    });
    await store.start(signal);
    closing.defer(() => store.close());
    holder.attach(store);
    peers.announce();
    return new SharingNode({ store, peers, metrics, statistics }, closing.move());
  }

  /** Makes the layer ready and fetches all of it; resolves when every byte is here, verified. */
  async fetchAll(layer: LayerReference, signal: AbortSignal): Promise<void> {
    await this.provide(layer, signal);
    const held = this.store.layers.get(layer.digest);
    if (held === undefined) throw new Error(`${layer.digest} was not made`);
    await held.open();
    await this.store.prefetch(
      layer.digest,
      Array.from({ length: held.map.spanCount }, (_, span) => span),
    );
    while (!held.complete) await sleep(10, undefined, { signal });
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
