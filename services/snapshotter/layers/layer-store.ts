import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Claims } from '#shared/bus/bus.ts';
import type { Digest } from '#shared/digest/digest.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import type { LayerFile, LayerFiles } from '../fuse/layer-files.ts';
import {
  NotLazyError,
  type LayerProvider,
  type LayerRequest,
  type ProvidedLayer,
} from '../snapshots/layer-provider.ts';
import { BootRecord } from './boot-record.ts';
import { Evictor } from './evictor.ts';
import { FetchScheduler } from './fetch-scheduler.ts';
import type { FetchLimits } from './fetch-pace.ts';
import { Layer, type LayerContext } from './layer.ts';
import type { IndexSource } from '#shared/indexes/index-source.ts';
import type { ZtocSource } from '#shared/indexes/soci-indexes.ts';
import type { PublishIndex } from './index-news.ts';
import { LayerBuilder, type StreamBuilder } from './layer-builder.ts';
import { LayerDirectory } from './layer-directory.ts';
import { LayerReadError } from './layer-error.ts';
import { isOfNodeOnly, requireSameToc } from './layer-record.ts';
import type { LayerMounts } from './layer-mounts.ts';
import type { LayerStatistics } from './layer-statistics.ts';
import type { SpanSource } from './span-source.ts';
import type { WorkerPool } from './worker-pool.ts';

export interface LayerStoreOptions {
  /** Folder of everything that the store keeps. */
  readonly dataDir: string;
  /** Where the FUSE session shows the layers' files. */
  readonly fuseDir: string;
  readonly mounts: LayerMounts;
  readonly workers: WorkerPool;
  readonly registry: ConstructorParameters<typeof LayerBuilder>[0]['registry'];
  readonly indexes: readonly IndexSource[];
  readonly ztocs?: ZtocSource | undefined;
  readonly streamed: StreamBuilder;
  /** Tells other nodes of an index that was made here; undefined where there are none. */
  readonly publishIndex?: PublishIndex | undefined;
  /** So that of several nodes one reads a blob that nobody has indexed; undefined where there are none. */
  readonly claims?: Pick<Claims, 'claim'> | undefined;
  /** Peers first, the registry last. */
  readonly sources: readonly SpanSource[];
  readonly statistics: LayerStatistics;
  readonly logger: Logger;
  readonly limits?: Partial<FetchLimits>;
  /** Bytes that layers may occupy; 0 = no limit. What is mounted is never evicted, so it may be passed. */
  readonly quotaBytes: number;
  /** Whether layers are completed in the background. */
  readonly background: boolean;
}

/** Layers opened at once at a start. */
const LOAD_PARALLEL = 16;

/**
 * The layers of this node: builds them, mounts them, serves their files, fills them, and evicts them.
 * Serves the FUSE session (LayerFiles) and the snapshots service (LayerProvider).
 */
export class LayerStore implements LayerFiles, LayerProvider {
  readonly #options: LayerStoreOptions;
  readonly #directory: LayerDirectory;
  readonly #builder: LayerBuilder;
  readonly #scheduler: FetchScheduler;
  readonly #context: LayerContext;
  readonly #layers = new Map<Digest, Layer>();
  readonly #byName = new Map<string, Layer>();
  readonly #byInode = new Map<bigint, Layer>();
  readonly #removing = new Map<Digest, Promise<void>>();
  readonly #building = new Map<Digest, Promise<Layer>>();
  /** Calls of `provide` and `mountOf` under way, per layer: such a layer is not evicted. */
  readonly #wanted = new Map<Digest, number>();
  readonly #listeners = new Set<(layer: Digest, span: number) => void>();
  readonly #removedListeners = new Set<(layer: Digest) => void>();
  readonly #tasks = new Set<Promise<unknown>>();
  readonly #stopping = new AbortController();
  readonly #evictor: Evictor<Layer>;
  #boot: BootRecord | undefined;

  constructor(options: LayerStoreOptions) {
    this.#options = options;
    const { workers, logger, statistics } = options;
    this.#directory = new LayerDirectory(join(options.dataDir, 'layers'));
    this.#builder = new LayerBuilder({ ...options, directory: this.#directory });
    this.#scheduler = new FetchScheduler({
      sources: options.sources,
      observer: statistics,
      ...(options.limits === undefined ? {} : { limits: options.limits }),
    });
    this.#evictor = new Evictor({
      quotaBytes: options.quotaBytes,
      layers: () => this.#layers.values(),
      mayEvict: ({ layer }) => options.mounts.sourceOf(layer) === undefined && !this.#wanted.has(layer),
      remove: async (layer) => {
        logger.info({ layer: layer.layer, bytes: layer.diskBytes }, 'Evicting a layer');
        await this.#remove(layer);
      },
    });
    this.#context = {
      directory: this.#directory,
      workers,
      logger,
      scheduler: () => this.#scheduler,
      makeRoom: () => this.#evictor.makeRoom(),
      resident: (layer, span) => {
        for (const listener of this.#listeners) listener(layer.layer, span);
      },
      complete: (layer) => this.#completed(layer),
      stalled: (layer, first, last, waitedMs) => statistics.stalled(layer.layer, first, last, waitedMs),
    };
  }

  /** Finds what is on disk and mounted. A layer that cannot be used is left out and said; it never keeps the rest from starting. */
  async start(signal: AbortSignal): Promise<void> {
    const { logger, mounts } = this.#options;
    const found = await this.#directory.list(signal);
    this.#boot = await BootRecord.read(join(this.#options.dataDir, 'boot.json'), signal);
    const { trusted } = this.#boot;
    if (!trusted && found.length > 0)
      logger.warn({ layers: found.length }, 'Unclean boot: every span is verified again');
    const left = [...found];
    const damaged: Digest[] = [];
    await Promise.all(
      Array.from({ length: LOAD_PARALLEL }, async () => {
        for (let layer = left.pop(); layer !== undefined; layer = left.pop()) {
          try {
            this.#add(new Layer(await this.#directory.load(layer, trusted, signal), this.#context));
            const { mtimeMs } = await stat(this.#directory.file(layer, 'record'));
            this.#evictor.used(layer, mtimeMs);
          } catch (error) {
            signal.throwIfAborted();
            logger.error(
              { layer, err: error },
              'Cannot use a layer on disk: it is removed, and made anew when it is asked for',
            );
            damaged.push(layer);
          }
        }
      }),
    );
    for (const layer of damaged) await this.#directory.remove(layer);
    const strangers = await mounts.recover([...this.#layers.keys()], signal);
    if (strangers.length > 0) logger.warn({ mounts: strangers }, 'Took away mounts of layers that are not on disk');
    await this.#boot.markRunning();
    for (const layer of this.#layers.values()) if (mounts.sourceOf(layer.layer) !== undefined) this.#fill(layer);
  }

  /** Ends all work. `clean`: what is here is written to the disk, and believed at the next boot. */
  async close(): Promise<void> {
    this.#stopping.abort(new LayerReadError('closed', 'The agent is shutting down'));
    await this.#scheduler.close();
    await Promise.allSettled([...this.#tasks, ...this.#building.values()]);
    let synced = true;
    for (const layer of this.#layers.values()) {
      try {
        await layer.sync();
      } catch (error) {
        synced = false;
        this.#options.logger.warn({ layer: layer.layer, err: error }, 'Cannot sync a layer');
      }
      await layer.close();
    }
    if (!synced) return;
    try {
      await this.#boot?.markClean();
    } catch (error) {
      // Believed less at the next boot, which costs verifying; a full disk must not make a shutdown fail.
      this.#options.logger.warn({ err: error }, 'Cannot write that all layers are on disk');
    }
  }

  // LayerFiles

  list(): readonly LayerFile[] {
    return [...this.#layers.values()];
  }
  byName(name: string): LayerFile | undefined {
    return this.#byName.get(name);
  }
  byInode(inode: bigint): LayerFile | undefined {
    return this.#byInode.get(inode);
  }
  async read(
    file: LayerFile,
    offset: number,
    length: number,
    signal: AbortSignal,
    into?: Uint8Array<ArrayBuffer>,
  ): Promise<Uint8Array> {
    const layer = this.#byInode.get(file.inode);
    if (layer === undefined) throw new LayerReadError('closed', `Cannot read ${file.name}: the layer was removed`);
    return await layer.read(offset, length, signal, into);
  }

  // LayerProvider

  async provide(request: LayerRequest, signal: AbortSignal): Promise<ProvidedLayer> {
    this.#scheduler.noteActivity();
    return await this.#using(request.layer, async () => {
      try {
        const layer = await this.#sound(await this.#obtain(request, signal), signal);
        requireSameToc(layer.record, request);
        await layer.addRequest(request);
        const path = await this.#mount(layer, signal);
        this.#fill(layer);
        const { impliedDirectories, rootOwner, diffId } = layer.record;
        return {
          path,
          impliedDirectories: impliedDirectories.map((name) => Buffer.from(name, 'base64')),
          rootOwner,
          diffId,
        };
      } catch (error) {
        signal.throwIfAborted();
        if (error instanceof NotLazyError) throw error;
        const { layer, imageReference } = request;
        const why = error instanceof Error ? error.message : String(error);
        throw new NotLazyError('unsupported', `Cannot provide ${layer} of ${imageReference} lazily: ${why}`, {
          cause: error,
        });
      }
    });
  }

  async mountOf(digest: Digest, signal: AbortSignal): Promise<string> {
    return await this.#using(digest, async () => {
      let layer = this.#layers.get(digest);
      if (layer === undefined) {
        throw new NotLazyError(
          'no-index',
          `Cannot mount ${digest}: the layer is not on this node; pull its image again`,
        );
      }
      this.#scheduler.noteActivity();
      layer = await this.#sound(layer, signal);
      const path = await this.#mount(layer, signal);
      this.#fill(layer);
      return path;
    });
  }

  tarOf(digest: Digest): Digest | undefined {
    return this.#layers.get(digest)?.record.diffId;
  }

  async learnTar(request: LayerRequest, signal: AbortSignal): Promise<void> {
    const layer = this.#layers.get(request.layer);
    if (layer === undefined || layer.record.diffId !== undefined || isOfNodeOnly(layer.record)) return;
    const diffId = await this.#builder.tarOf(request, layer.record, signal);
    if (diffId !== undefined) await layer.setTar(diffId);
  }

  usage(digest: Digest): { readonly sizeBytes: number; readonly inodes: number } {
    const layer = this.#layers.get(digest);
    return { sizeBytes: layer?.diskBytes ?? 0, inodes: layer?.record.inodes ?? 0 };
  }

  async release(digest: Digest, signal: AbortSignal): Promise<void> {
    await this.#options.mounts.unmount(digest, signal);
    const layer = this.#layers.get(digest);
    if (layer === undefined) return;
    this.#scheduler.forget(layer);
    this.#evictor.used(layer.layer);
    await layer.touch();
    await this.#evictor.keepQuota();
  }

  /** For what a crash left undone; releases and new layers keep the quota by themselves. */
  async keepQuota(): Promise<void> {
    await this.#evictor.keepQuota();
  }

  // For peers, control and status

  get layers(): ReadonlyMap<Digest, Layer> {
    return this.#layers;
  }
  get diskBytes(): number {
    let sum = 0;
    for (const layer of this.#layers.values()) sum += layer.diskBytes;
    return sum;
  }
  /** Called for every span that becomes readable; returns how to stop that. */
  onResident(listener: (layer: Digest, span: number) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
  /** Called for every layer that is evicted; returns how to stop that. */
  onRemoved(listener: (layer: Digest) => void): () => void {
    this.#removedListeners.add(listener);
    return () => this.#removedListeners.delete(listener);
  }
  /** Fetches spans before they are asked for, in this order. */
  async prefetch(digest: Digest, spans: Iterable<number>): Promise<void> {
    const layer = this.#layers.get(digest);
    if (layer === undefined || layer.complete) return;
    await layer.open();
    for (const span of spans) this.#scheduler.prefetch(layer, span, 1);
  }

  #add(layer: Layer): void {
    this.#layers.set(layer.layer, layer);
    this.#byName.set(layer.name, layer);
    this.#byInode.set(layer.inode, layer);
  }

  /** The layer, or the same made anew where its files were damaged when the machine went down. */
  async #sound(layer: Layer, signal: AbortSignal): Promise<Layer> {
    if (layer.complete) return layer;
    try {
      await layer.open();
      return layer;
    } catch (error) {
      const [request] = layer.requests;
      if (request === undefined || !(error instanceof LayerReadError) || error.code !== 'broken') throw error;
      this.#options.logger.warn({ layer: layer.layer, err: error }, 'A layer is damaged: it is made anew');
      // Of several callers the first removes it; the others find the new one, or join in making it.
      if (this.#layers.get(layer.layer) === layer) await this.#remove(layer);
      return await this.#obtain(request, signal);
    }
  }

  /** The layer, built if it is not here; callers at the same time share the work, which none of them can cancel. */
  async #obtain(request: LayerRequest, signal: AbortSignal): Promise<Layer> {
    const known = this.#layers.get(request.layer);
    if (known !== undefined) return known;
    let building = this.#building.get(request.layer);
    if (building === undefined) {
      building = this.#build(request).finally(() => this.#building.delete(request.layer));
      this.#building.set(request.layer, building);
    }
    return await abortable(building, signal);
  }

  async #build(request: LayerRequest): Promise<Layer> {
    const signal = this.#stopping.signal;
    const { record, folder, downloadedBytes, news } = await this.#builder.build(request, signal);
    await using held = new AsyncDisposableStack();
    held.use(news);
    this.#options.statistics.built(request.layer, downloadedBytes);
    // What is being taken away must not take the new folder with it.
    await this.#removing.get(request.layer);
    await this.#directory.publish(folder, record);
    const layer = new Layer(await this.#directory.load(request.layer, true, signal), this.#context);
    this.#add(layer);
    this.#evictor.used(layer.layer);
    this.#background(this.#evictor.keepQuota());
    if (layer.complete) this.#announce(layer);
    if (news === undefined) return layer;
    // Only now, so that those who wait for the index find the layer here.
    held.move();
    this.#background(news.publish(signal));
    return layer;
  }

  /** It was read whole to be made. */
  #announce(layer: Layer): void {
    for (const listener of this.#listeners) {
      for (let span = 0; span < layer.record.spanCount; span++) listener(layer.layer, span);
    }
  }

  async #mount(layer: Layer, signal: AbortSignal): Promise<string> {
    const { mounts, fuseDir } = this.#options;
    this.#evictor.used(layer.layer);
    const source = layer.complete ? this.#directory.file(layer.layer, 'image') : join(fuseDir, layer.name);
    // A complete layer's mount is from the disk and needs nothing else; no going back to FUSE when it is on top.
    if (mounts.sourceOf(layer.layer) === this.#directory.file(layer.layer, 'image')) return mounts.pathOf(layer.layer);
    return await mounts.mount(layer.layer, source, signal);
  }

  /** Starts what is to come without being asked for. */
  #fill(layer: Layer): void {
    if (layer.complete) return;
    this.#background(
      layer.open().then(() => {
        if (this.#stopping.signal.aborted) return;
        for (const source of this.#options.sources) source.expected?.(layer);
        if (layer.map.prioritySpans > 0) this.#scheduler.prefetch(layer, 0, layer.map.prioritySpans);
        if (this.#options.background && this.#evictor.allows(layer.record.imageSize - layer.diskBytes))
          this.#scheduler.complete(layer);
      }),
    );
  }

  #completed(layer: Layer): void {
    const { mounts, logger } = this.#options;
    if (mounts.sourceOf(layer.layer) === undefined || this.#stopping.signal.aborted) return;
    this.#background(
      this.#mount(layer, this.#stopping.signal).then(() => logger.debug({ layer: layer.layer }, 'A layer is complete')),
    );
  }

  async #using<T>(layer: Digest, use: () => Promise<T>): Promise<T> {
    this.#wanted.set(layer, (this.#wanted.get(layer) ?? 0) + 1);
    try {
      return await use();
    } finally {
      const left = (this.#wanted.get(layer) ?? 1) - 1;
      if (left === 0) this.#wanted.delete(layer);
      else this.#wanted.set(layer, left);
    }
  }

  async #remove(layer: Layer): Promise<void> {
    const removed = this.#removeFiles(layer);
    this.#removing.set(layer.layer, removed);
    try {
      await removed;
    } finally {
      this.#removing.delete(layer.layer);
    }
  }

  async #removeFiles(layer: Layer): Promise<void> {
    this.#layers.delete(layer.layer);
    for (const listener of this.#removedListeners) listener(layer.layer);
    this.#byName.delete(layer.name);
    this.#byInode.delete(layer.inode);
    this.#evictor.forget(layer.layer);
    this.#options.statistics.forget(layer.layer);
    this.#scheduler.forget(layer);
    await layer.close();
    await this.#directory.remove(layer.layer);
  }

  #background(work: Promise<unknown>): void {
    const task = work.catch((error: unknown) => {
      if (!this.#stopping.signal.aborted) this.#options.logger.warn({ err: error }, 'Background work failed');
    });
    this.#tasks.add(task);
    void task.then(() => this.#tasks.delete(task));
  }
}

function abortable<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted();
  return new Promise<T>((resolve, reject) => {
    const abort = () => reject(signal.reason);
    signal.addEventListener('abort', abort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
  });
}
