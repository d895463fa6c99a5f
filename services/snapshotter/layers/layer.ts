import { read as readFd } from 'node:fs';
import { open, utimes, type FileHandle } from 'node:fs/promises';
import { hexOf, type Digest } from '#shared/digest/digest.ts';
import { parseSpanMap, type DecodableSpanMap } from '#shared/layer/span-map-file.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import type { LayerFile } from '../fuse/layer-files.ts';
import type { LayerRequest } from '../snapshots/layer-provider.ts';
import type { FetchTarget } from './fetch-target.ts';
import type { FetchScheduler } from './fetch-scheduler.ts';
import { EarlyReads, type EarlyRead, type ImageRange } from './early-reads.ts';
import { LayerReadError } from './layer-error.ts';
import type { LayerDirectory, LoadedLayer } from './layer-directory.ts';
import { imageInodeOf, imageNameOf } from './layer-folder.ts';
import { originOf, requestOf, withRequest, type LayerRecord } from './layer-record.ts';
import { ReadAhead } from './read-ahead.ts';
import { Residency } from './residency.ts';
import type { FetchPriority, LayerOrigin, SpanBytes } from './span-source.ts';
import type { SharedMap, WorkerJob } from './worker-job.ts';
import { WorkerError, type WorkerPool } from './worker-pool.ts';

/** Threads that end under a layer's spans until its readers get an error: one may be bad luck of others, more are its own. */
const MAX_CRASHES = 3;
/** The map of a complete layer is only for peers: it goes when they have not asked for this long. */
const MAP_MS = 10_000;

type StoreJob = WorkerJob & { readonly kind: 'store' };

export interface LayerContext {
  readonly directory: LayerDirectory;
  readonly workers: Pick<WorkerPool, 'run' | 'promote'>;
  readonly scheduler: () => FetchScheduler;
  readonly logger: Logger;
  /** Frees disk space. False: there is nothing to free. */
  makeRoom(): Promise<boolean>;
  /** A span has become readable. */
  resident(layer: Layer, span: number): void;
  complete(layer: Layer): void;
  /** A reader waited this long. */
  stalled(layer: Layer, first: number, last: number, waitedMs: number): void;
}

/** A layer on this node: its image file, which spans of it are there, and how the rest comes. */
export class Layer implements FetchTarget, LayerFile {
  readonly layer: Digest;
  readonly name: string;
  readonly inode: bigint;
  readonly sizeBytes: number;
  readonly #context: LayerContext;
  readonly #residency: Residency;
  readonly #image: FileHandle;
  readonly #readAhead = new ReadAhead();
  readonly #early = new EarlyReads();
  /** Spans that workers are to store: makes one urgent. */
  readonly #storing = new Map<number, () => void>();
  #record: LayerRecord;
  #suspect: Residency | undefined;
  #origins: readonly LayerOrigin[];
  #map: DecodableSpanMap | undefined;
  #shared: SharedMap | undefined;
  #opening: Promise<void> | undefined;
  #mapTimer: NodeJS.Timeout | undefined;
  /** After an unclean boot, until map and metadata were checked. */
  #unchecked: boolean;
  #diskBytes: number;
  #flushing: Promise<void> = Promise.resolve();
  #dirty = false;
  #synced = false;
  /** Users of the file descriptor: it must not be closed, and its number not be reused, under a worker that writes to it. */
  #pins = 0;
  #crashes = 0;
  #unpinned: (() => void) | undefined;
  #closed = false;

  constructor(loaded: LoadedLayer, context: LayerContext) {
    const { record } = loaded;
    this.layer = record.layer;
    this.name = imageNameOf(hexOf(record.layer));
    this.inode = imageInodeOf(hexOf(record.layer));
    this.sizeBytes = record.imageSize;
    this.#record = record;
    this.#residency = loaded.residency;
    this.#suspect = loaded.suspect;
    this.#unchecked = loaded.suspect !== undefined;
    this.#image = loaded.image;
    this.#diskBytes = loaded.diskBytes;
    this.#context = context;
    this.#origins = record.requests.map((request) => originOf(request, record.blobSize));
  }

  get record(): LayerRecord {
    return this.#record;
  }
  get origins(): readonly LayerOrigin[] {
    return this.#origins;
  }
  /** What a layer can be made anew from. */
  get requests(): readonly LayerRequest[] {
    return this.#record.requests.map(requestOf);
  }
  get residentSpans(): number {
    return this.#residency.count;
  }
  get complete(): boolean {
    return this.#residency.complete && !this.#unchecked;
  }
  get diskBytes(): number {
    return this.#diskBytes;
  }
  get residencyBytes(): Uint8Array {
    return this.#residency.toBytes();
  }
  /** Only between `open` and the end of the layer; the scheduler gets only layers that are open. */
  get map(): DecodableSpanMap {
    if (this.#map === undefined) throw new LayerReadError('closed', `The span map of ${this.layer} is not loaded`);
    return this.#map;
  }

  has(span: number): boolean {
    return this.#residency.has(span);
  }
  nextMissing(from: number): number {
    return this.#residency.nextMissing(from);
  }
  suspects(span: number): boolean {
    return this.#suspect?.has(span) === true;
  }

  /** Loads the map; after an unclean boot checks it and the metadata first. @throws LayerReadError `broken` */
  async open(): Promise<void> {
    if (this.#residency.complete) this.#dropMapLater();
    if (this.#map !== undefined && !this.#unchecked) return;
    this.#opening ??= this.#open().finally(() => {
      this.#opening = undefined;
    });
    await this.#opening;
  }

  /** At most `length` bytes, in `into` where it is given: fewer only at the end of the file. @throws LayerReadError */
  async read(offset: number, length: number, signal: AbortSignal, into?: Uint8Array<ArrayBuffer>): Promise<Uint8Array> {
    const size = Math.max(0, Math.min(length, this.sizeBytes - offset));
    if (size === 0) return new Uint8Array(0);
    if (!this.complete) {
      if (this.#map === undefined || this.#unchecked) await this.open();
      const range = this.map.spansOf(offset, size);
      if (range !== undefined) await this.#ensure(range[0], range[1], [offset, offset + size], signal);
    }
    const buffer = into?.subarray(0, size) ?? Buffer.allocUnsafeSlow(size);
    await this.#pinned(() => readFully(this.#image.fd, buffer, offset, this.layer));
    return buffer;
  }

  /** Fetches the span as though it were read: a reader of another node waits for it. Aborting ends this wait alone. @throws LayerReadError */
  async hurry(span: number, signal: AbortSignal): Promise<void> {
    await this.open();
    await this.#context.scheduler().ensure(this, span, span, signal);
  }

  /** The span's payload, as peers get it; undefined when it is not here. */
  async readPayload(span: number): Promise<Buffer | undefined> {
    await this.open();
    if (!this.has(span)) return undefined;
    const payload = Buffer.allocUnsafeSlow(this.map.payloadLength(span));
    await this.#pinned(async () => {
      let at = 0;
      for (const extent of this.map.extents(span)) {
        const part = payload.subarray(at, at + extent.length);
        await readFully(this.#image.fd, part, extent.imageOffset, this.layer);
        at += extent.length;
      }
    });
    return payload;
  }

  async verify(span: number, priority: FetchPriority): Promise<boolean> {
    this.#suspect?.delete(span);
    const shared = this.#sharedMap();
    const whole = await this.#pinned(() =>
      this.#context.workers.run({ kind: 'verify', map: shared, fd: this.#image.fd, span }, priority),
    );
    if (whole) this.#markResident(span);
    return whole;
  }

  async store(span: number, bytes: SpanBytes, priority: FetchPriority): Promise<'stored' | 'mismatch' | 'retry'> {
    const shared = this.#sharedMap();
    const own = ownBuffer(bytes.bytes);
    const job: StoreJob = {
      kind: 'store',
      map: shared,
      fd: this.#image.fd,
      span,
      form: bytes.form,
      bytes: own,
      wanted: [],
    };
    let early: readonly EarlyRead[] = [];
    const note = (): void => {
      early = this.#early.of(span);
      job.wanted = early.map(({ range }) => range);
    };
    note();
    this.#storing.set(span, () => this.#context.workers.promote(job, note));
    try {
      const result = await this.#pinned(() =>
        this.#context.workers.run(job, priority, [own.buffer], () => this.#early.came(span, early)),
      );
      if (result === 'stored') {
        this.#diskBytes += this.map.payloadLength(span);
        this.#markResident(span);
      }
      return result;
    } catch (error) {
      if (!(error instanceof WorkerError)) throw error;
      if (error.code === 'closed') throw new LayerReadError('closed', error.message, { cause: error });
      if (error.code === 'crashed' && this.#crashes++ < MAX_CRASHES) return 'retry';
      if (error.code !== 'ENOSPC' && error.code !== 'EDQUOT') {
        throw new LayerReadError('broken', `Cannot keep span ${span} of ${this.layer}: ${error.message}`, {
          cause: error,
        });
      }
      if (await this.#context.makeRoom()) return 'retry';
      throw new LayerReadError(
        'no-space',
        `Cannot keep span ${span} of ${this.layer}: the disk is full and nothing can be evicted; free space on it`,
        { cause: error },
      );
    } finally {
      this.#storing.delete(span);
    }
  }

  urgent(span: number): void {
    this.#storing.get(span)?.();
  }

  async addRequest(request: LayerRequest): Promise<void> {
    const next = withRequest(this.#record, request);
    if (next === this.#record) return;
    this.#record = next;
    this.#origins = next.requests.map((known) => originOf(known, next.blobSize));
    await this.#context.directory.writeRecord(next);
  }

  /** The digest of its tar, which somebody has found out by now. */
  async setTar(diffId: Digest): Promise<void> {
    this.#record = { ...this.#record, diffId };
    await this.#context.directory.writeRecord(this.#record);
  }

  /** For the order of eviction, also after a restart. */
  async touch(): Promise<void> {
    const now = new Date();
    await utimes(this.#context.directory.file(this.layer, 'record'), now, now).catch(() => undefined);
  }

  /** Everything on disk, so that a clean shutdown may say so. */
  async sync(): Promise<void> {
    await this.#flush();
    if (this.#synced) return;
    await this.#image.datasync();
    for (const file of ['map', 'record', 'residency'] as const) {
      await using handle = await open(this.#context.directory.file(this.layer, file), 'r');
      await handle.datasync();
    }
  }

  /** Waits for what reads and writes the file. Later reads get `closed`. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#mapTimer);
    if (this.#pins > 0) await new Promise<void>((resolve) => (this.#unpinned = resolve));
    await this.#flush();
    await this.#image.close();
  }

  /** `range`: what is read of the spans. */
  async #ensure(first: number, last: number, range: ImageRange, signal: AbortSignal): Promise<void> {
    const scheduler = this.#context.scheduler();
    const missed = !this.#residency.hasAll(first, last);
    const { map } = this;
    const ahead = this.#readAhead.note(first, last, missed, (span) =>
      span < map.spanCount ? map.blobEnd(span) - map.blobStart(span) : undefined,
    );
    if (!missed) {
      if (ahead !== undefined) scheduler.prefetch(this, ahead.first, ahead.count);
      return;
    }
    const startMs = performance.now();
    const aheadCount = ahead === undefined ? 0 : ahead.first + ahead.count - last - 1;
    const missing: number[] = [];
    for (let span = first; span <= last; span++) if (!this.has(span)) missing.push(span);
    const early = this.#early.begin(range, missing);
    const enough = new AbortController();
    const whole = scheduler.ensure(this, first, last, AbortSignal.any([signal, enough.signal]), aheadCount);
    try {
      await Promise.race([whole, early.ready]);
    } finally {
      this.#early.end(early);
      // The rest of the spans comes without this reader.
      whole.catch(() => undefined);
      enough.abort();
    }
    this.#context.stalled(this, first, last, performance.now() - startMs);
  }

  async #open(): Promise<void> {
    const { directory, workers } = this.#context;
    const { record } = this;
    await using file = await open(directory.file(this.layer, 'map'), 'r');
    const { size } = await file.stat();
    const bytes = new Uint8Array(new SharedArrayBuffer(size));
    for (let at = 0; at < size; ) {
      const { bytesRead } = await file.read(bytes, at, size - at, at);
      if (bytesRead === 0) throw this.#broken('its span map is cut short');
      at += bytesRead;
    }
    if (this.#unchecked) {
      const map: SharedMap = { layer: this.layer, bytes: bytes.buffer };
      const { metadataSize, metadataDigest, mapDigest } = record;
      const whole = await this.#pinned(() =>
        workers.run({ kind: 'check', map, mapDigest, fd: this.#image.fd, metadataSize, metadataDigest }, 'demand'),
      );
      if (!whole) throw this.#broken('its map or its metadata was damaged when the machine went down');
    }
    this.#map = parseSpanMap(bytes);
    this.#shared = { layer: this.layer, bytes: bytes.buffer };
    this.#unchecked = false;
  }

  #dropMapLater(): void {
    clearTimeout(this.#mapTimer);
    this.#mapTimer = setTimeout(() => {
      if (this.#unchecked) return;
      this.#map = undefined;
      this.#shared = undefined;
    }, MAP_MS).unref();
  }

  #broken(why: string): LayerReadError {
    return new LayerReadError('broken', `Cannot read ${this.layer}: ${why}; remove and pull the image again`);
  }

  #sharedMap(): SharedMap {
    if (this.#closed || this.#shared === undefined) {
      throw new LayerReadError('closed', `Cannot use ${this.layer}: it is closed`);
    }
    return this.#shared;
  }

  #markResident(span: number): void {
    if (!this.#residency.add(span)) return;
    this.#early.came(span, this.#early.of(span));
    this.#dirty = true;
    this.#synced = false;
    this.#context.resident(this, span);
    if (this.#residency.complete) {
      this.#suspect = undefined;
      this.#dropMapLater();
      void this.#flush()
        .then(() => this.#context.directory.clearSuspect(this.layer))
        .catch((error: unknown) => {
          this.#context.logger.warn({ err: error, layer: this.layer }, 'Cannot write that a layer is complete');
        });
      this.#context.complete(this);
      return;
    }
    // At once: what a reader got is there for the next agent too. Writes that would overlap become one.
    this.#flush().catch((error: unknown) => {
      // Spans that the file does not name are fetched again after a restart; nothing wrong is ever believed.
      this.#context.logger.warn({ err: error, layer: this.layer }, 'Cannot write which spans are resident');
    });
  }

  #flush(): Promise<void> {
    const next = this.#flushing.then(async () => {
      if (!this.#dirty) return;
      this.#dirty = false;
      await this.#context.directory.writeResidency(this.#residency, this.layer);
    });
    this.#flushing = next.catch(() => undefined);
    return next;
  }

  async #pinned<T>(use: () => Promise<T>): Promise<T> {
    if (this.#closed) throw new LayerReadError('closed', `Cannot use ${this.layer}: it is closed`);
    this.#pins++;
    try {
      return await use();
    } finally {
      if (--this.#pins === 0) this.#unpinned?.();
    }
  }
}

function readFully(fd: number, buffer: Uint8Array, position: number, layer: Digest): Promise<void> {
  return new Promise((resolve, reject) => {
    const step = (at: number) => {
      readFd(fd, buffer, at, buffer.length - at, position + at, (error, bytesRead) => {
        if (error !== null) {
          reject(new LayerReadError('broken', `Cannot read the cache of ${layer}: ${error.message}`, { cause: error }));
        } else if (at + bytesRead === buffer.length) resolve();
        else if (bytesRead === 0) reject(new LayerReadError('broken', `The cache file of ${layer} was cut short`));
        else step(at + bytesRead);
      });
    };
    step(0);
  });
}

/** The bytes in an ArrayBuffer of their own that may be handed to another thread. */
function ownBuffer(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  const { buffer } = bytes;
  const whole = buffer instanceof ArrayBuffer && bytes.byteOffset === 0 && bytes.byteLength === buffer.byteLength;
  return whole ? new Uint8Array(buffer) : new Uint8Array(bytes);
}
