import type { Digest } from '#shared/digest/digest.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import { Counter, type Registry } from '#shared/telemetry/metrics.ts';
import { NotLazyError, type LayerProvider, type LayerRequest, type ProvidedLayer } from './layer-provider.ts';
import { contradictsChain, isContested } from './chain-check.ts';
import { buildCover } from './cover.ts';
import { overlayMounts, type SnapshotMount } from './overlay-mounts.ts';
import { remoteLabels, remoteRequest, TARGET_LABEL, type RemoteRequest } from './remote-labels.ts';
import { checkLabels, checkName, SNAPSHOT_LIMITS, type Snapshot, type Usage } from './snapshot.ts';
import { SnapshotError } from './snapshot-error.ts';
import { parseFilters } from './snapshot-filter.ts';
import type { SnapshotFolders } from './snapshot-folders.ts';
import type { NotLazyRecord, SnapshotStore, StoredSnapshot } from './snapshot-store.ts';

export interface SnapshotServiceDeps {
  readonly store: SnapshotStore;
  readonly folders: SnapshotFolders;
  readonly layers: LayerProvider;
  readonly logger: Logger;
  readonly metrics: Registry;
}

type Labels = Readonly<Record<string, string>>;

/**
 * containerd's snapshots, as its contract describes them (`core/snapshots/snapshotter.go`): normal ones are folders under
 * overlayfs, remote ones stand for a layer that the provider mounts.
 *
 * The owner calls `start` before the first request and `close` after the last.
 */
export class SnapshotService {
  readonly #store: SnapshotStore;
  readonly #folders: SnapshotFolders;
  readonly #layers: LayerProvider;
  readonly #logger: Logger;
  readonly #prepares: Counter<'result'>;
  readonly #notLazy: Counter<'code'>;
  readonly #contested: Counter<'outcome'>;
  /** Remote snapshots being made, by target and parent: their layers are provided and committed once. */
  readonly #providing = new Map<string, Promise<void>>();
  /** Folders of snapshots whose row exists, or will in this tick: never an orphan. */
  readonly #making = new Set<number>();
  readonly #closed = new AbortController();
  /** Layers whose last snapshot may have gone. */
  readonly #unneeded = new Set<Digest>();
  /** How many pulls and Prepares are making a layer ready. */
  readonly #inFlight = new Map<Digest, number>();
  #cleaning: Promise<void> = Promise.resolve();
  #isCleanupQueued = false;

  constructor(deps: SnapshotServiceDeps) {
    this.#store = deps.store;
    this.#folders = deps.folders;
    this.#layers = deps.layers;
    this.#logger = deps.logger;
    this.#prepares = new Counter({
      name: 'kindling_snapshot_prepares_total',
      help: 'Prepare and View calls by what came of them: lazy, not-lazy (pulled whole), normal (no layer asked for).',
      labelNames: ['result'],
      registers: [deps.metrics],
    });
    this.#notLazy = new Counter({
      name: 'kindling_layers_not_lazy_total',
      help: 'Layers that containerd had to pull whole, by reason.',
      labelNames: ['code'],
      registers: [deps.metrics],
    });
    this.#contested = new Counter({
      name: 'kindling_snapshots_contested_total',
      help: 'Snapshots asked for that another image had made of a blob whose tar nobody has checked: replaced, or refused.',
      labelNames: ['outcome'],
      registers: [deps.metrics],
    });
  }

  /** Deletes what a crash left behind. */
  async start(signal: AbortSignal): Promise<void> {
    await this.cleanup(signal);
  }

  /** Rejects with `already-exists` when the snapshot that containerd wants in the end is there (again): no mounts then. */
  async prepare(key: string, parent: string, labels: Labels, signal: AbortSignal): Promise<readonly SnapshotMount[]> {
    checkName(key, 'key');
    checkLabels(labels);
    const remote = remoteRequest(labels);
    if (remote !== undefined && (await this.#provide(remote, parent, labels, signal))) {
      this.#prepares.inc({ result: 'lazy' });
      throw new SnapshotError('already-exists', `Target snapshot ${JSON.stringify(remote.target)} is there, lazily`);
    }
    this.#prepares.inc({ result: remote === undefined ? 'normal' : 'not-lazy' });
    return await this.#create('active', key, parent, labels, signal);
  }

  async view(key: string, parent: string, labels: Labels, signal: AbortSignal): Promise<readonly SnapshotMount[]> {
    checkName(key, 'key');
    checkLabels(labels);
    this.#prepares.inc({ result: 'normal' });
    return await this.#create('view', key, parent, labels, signal);
  }

  async mounts(key: string, signal: AbortSignal): Promise<readonly SnapshotMount[]> {
    const snapshot = this.#store.get(key);
    if (snapshot.kind === 'committed') {
      throw new SnapshotError('failed-precondition', `Cannot mount ${JSON.stringify(key)}: it is committed`);
    }
    return await this.#mountsOf(snapshot, signal);
  }

  async commit(name: string, key: string, labels: Labels, parent: string, signal: AbortSignal): Promise<void> {
    checkName(name, 'name');
    checkLabels(labels);
    signal.throwIfAborted();
    const owner = await this.#folders.owner(this.#store.get(key).id, signal);
    this.#store.commit(key, name, labels, parent, owner);
  }

  remove(key: string): void {
    const removed = this.#store.remove(key);
    if (removed.layer !== undefined) this.#unneeded.add(removed.layer);
    // Deletion takes its time and may fail; containerd is told about the metadata, which is what counts.
    this.#cleanupSoon();
  }

  stat(key: string): Snapshot {
    return this.#store.get(key);
  }

  /** `mask`: empty, `labels`, or paths `labels.<key>`; whatever else is immutable. */
  update(name: string, labels: Labels, mask: readonly string[]): Snapshot {
    for (const path of mask) {
      if (path !== 'labels' && !path.startsWith('labels.')) {
        throw new SnapshotError(
          'invalid',
          `Cannot update ${path} of snapshot ${JSON.stringify(name)}: only labels change`,
        );
      }
    }
    return this.#store.setLabels(name, (old) => {
      if (mask.length === 0 || mask.includes('labels')) return checkLabels(labels);
      const changed: Record<string, string> = { ...old };
      for (const path of mask) {
        const key = path.slice('labels.'.length);
        const value = Object.hasOwn(labels, key) ? labels[key] : undefined;
        // containerd's stores take an empty value as "no such label".
        if (value === undefined || value === '') delete changed[key];
        else changed[key] = value;
      }
      return checkLabels(changed);
    });
  }

  *list(filters: readonly string[]): Generator<Snapshot, void, undefined> {
    const matches = parseFilters(filters);
    for (const snapshot of this.#store.all()) if (matches(snapshot)) yield snapshot;
  }

  /** Where a snapshot's own files are: the upper directory of a container that stands on it. */
  folderOf(id: number): string {
    return this.#folders.fs(id);
  }

  async usage(key: string, signal: AbortSignal): Promise<Usage> {
    const snapshot = this.#store.get(key);
    if (snapshot.layer !== undefined) return this.#layers.usage(snapshot.layer);
    if (snapshot.kind === 'view') return { sizeBytes: 0, inodes: 0 };
    if (snapshot.usage !== undefined) return snapshot.usage;
    const usage = await this.#folders.usage(snapshot.id, signal);
    if (snapshot.kind === 'committed') this.#store.setUsage(snapshot.id, usage);
    return usage;
  }

  /** Deletes folders without a snapshot and releases layers that no snapshot needs. One run at a time. */
  async cleanup(signal: AbortSignal): Promise<void> {
    const run = this.#cleaning.then(() => this.#cleanup(signal));
    this.#cleaning = run.catch(() => undefined);
    await run;
  }

  /**
   * Provides layers side by side, ahead of the Prepares that need them one after another, and lets go of those that no
   * snapshot stands on when `work` has ended. Each promise tells why its layer is not lazy; undefined = it is.
   */
  async withLayers<T>(
    requests: readonly LayerRequest[],
    signal: AbortSignal,
    work: (outcomes: readonly Promise<NotLazyError | undefined>[]) => Promise<T>,
  ): Promise<T> {
    for (const { layer } of requests) this.#hold(layer);
    const outcomes = requests.map(async (request) => {
      try {
        await this.#layers.provide(request, signal);
        return undefined;
      } catch (error) {
        return asNotLazy(error);
      }
    });
    try {
      return await work(outcomes);
    } finally {
      for (const [i, outcome] of outcomes.entries()) {
        const layer = requests[i]?.layer;
        if (layer === undefined) continue;
        if ((await outcome) === undefined) this.#unneeded.add(layer);
        this.#letGo(layer);
      }
      this.#cleanupSoon();
    }
  }

  /**
   * Sees to it that the snapshot that stands for a chain ID, if there is one, may stand for this layer too (see `isContested`): else it is
   * replaced for all that begins from now on.
   *
   * @throws SnapshotError `failed-precondition` where nothing sound can take its place
   */
  async settle(target: string, parent: string, request: LayerRequest, signal: AbortSignal): Promise<void> {
    const there = this.#store.findTarget(TARGET_LABEL, target, parent);
    if (there === undefined || !this.#isContested(there, request)) return;
    await this.#provide({ target, layer: request }, parent, remoteLabels(target, request), signal);
  }

  #isContested(there: StoredSnapshot, request: LayerRequest): boolean {
    return isContested(there, request, (layer) => this.#layers.tarOf(layer) !== undefined);
  }

  notLazy(): readonly NotLazyRecord[] {
    return this.#store.notLazy();
  }

  /** Layers that snapshots stand on: their mounts must come back after a reboot. */
  layers(): ReadonlySet<Digest> {
    return this.#store.layers();
  }

  /** Waits for what runs in the background; the mounts stay. */
  async close(): Promise<void> {
    this.#closed.abort();
    await Promise.allSettled(this.#providing.values());
    await this.#cleaning;
    this.#store.close();
  }

  async #create(
    kind: 'active' | 'view',
    key: string,
    parent: string,
    labels: Labels,
    signal: AbortSignal,
  ): Promise<readonly SnapshotMount[]> {
    const owner = parent === '' ? { uid: 0, gid: 0 } : (this.#store.find(parent)?.owner ?? { uid: 0, gid: 0 });
    // The row comes first: a folder without a row is an orphan, a row without a folder gets one with its mounts.
    const snapshot = this.#store.create({ name: key, kind, parent, labels, owner });
    try {
      return await this.#mountsOf(snapshot, signal);
    } catch (error) {
      // containerd takes a failed Prepare as one that left nothing.
      this.remove(key);
      throw error;
    }
  }

  async #mountsOf(snapshot: StoredSnapshot, signal: AbortSignal): Promise<readonly SnapshotMount[]> {
    const ancestors = this.#store.ancestors(snapshot);
    if (ancestors.length > SNAPSHOT_LIMITS.depth) {
      throw new SnapshotError(
        'failed-precondition',
        `Cannot mount ${JSON.stringify(snapshot.name)}: more than ${SNAPSHOT_LIMITS.depth} layers, overlayfs's limit`,
      );
    }
    const [roots] = await Promise.all([
      Promise.all(ancestors.map((ancestor) => this.#rootsOf(ancestor, signal))),
      this.#folders.create(snapshot.id, snapshot.owner, signal),
    ]);
    return overlayMounts({
      kind: snapshot.kind,
      fs: this.#folders.fs(snapshot.id),
      work: this.#folders.work(snapshot.id),
      lowers: roots.flat(),
    });
  }

  /** Read-only roots of a committed snapshot, topmost first. */
  async #rootsOf(snapshot: StoredSnapshot, signal: AbortSignal): Promise<readonly string[]> {
    if (snapshot.layer === undefined) return [this.#folders.fs(snapshot.id)];
    try {
      const path = await this.#pathOf(snapshot, snapshot.layer, signal);
      return snapshot.hasCover ? [this.#folders.cover(snapshot.id), path] : [path];
    } catch (cause) {
      if (!(cause instanceof NotLazyError)) throw cause;
      throw new SnapshotError(
        'unavailable',
        `Cannot mount layer ${snapshot.layer} of snapshot ${JSON.stringify(snapshot.name)}: ${cause.message}`,
        { cause },
      );
    }
  }

  async #pathOf(snapshot: StoredSnapshot, layer: Digest, signal: AbortSignal): Promise<string> {
    try {
      return await this.#layers.mountOf(layer, signal);
    } catch (error) {
      // The cache may have lost the layer (a power cut, a hand); the labels still say where it came from, and it is the same again.
      const remote = error instanceof NotLazyError ? remoteRequest(snapshot.labels) : undefined;
      if (remote === undefined || remote.layer.layer !== layer) throw error;
      this.#logger.warn({ layer, snapshot: snapshot.name, err: error }, 'a layer was lost: it is provided anew');
      return (await this.#layers.provide(remote.layer, signal)).path;
    }
  }

  /** True when the snapshot that containerd wants is committed; false when it must pull the layer itself. */
  async #provide(remote: RemoteRequest, parent: string, labels: Labels, signal: AbortSignal): Promise<boolean> {
    const { layer, imageReference } = remote.layer;
    const there = this.#store.findTarget(TARGET_LABEL, remote.target, parent);
    if (there !== undefined && !this.#isContested(there, remote.layer)) return true;
    // Before the layer is asked for: a parent that is missing is the caller's error, whatever the layer.
    if (parent !== '') this.#store.requireCommitted(parent);
    const flight = `${parent}\0${remote.target}`;
    let running = this.#providing.get(flight);
    if (running === undefined) {
      // Not the caller's signal: others may wait for the same, and a layer that is nearly there is worth finishing.
      running = this.#commitRemote(remote, parent, labels, there, this.#closed.signal).finally(() => {
        this.#providing.delete(flight);
        this.#letGo(layer);
      });
      running.catch(() => undefined);
      this.#hold(layer);
      this.#providing.set(flight, running);
    }
    try {
      await untilAborted(running, signal);
      return true;
    } catch (cause) {
      if (cause instanceof SnapshotError || signal.aborted || this.#closed.signal.aborted) throw cause;
      const error = asNotLazy(cause);
      if (there !== undefined) throw this.#refusal(remote, there, error);
      this.#notLazy.inc({ code: error.code });
      this.#store.recordNotLazy({ layer, imageReference, code: error.code, reason: error.message });
      this.#logger.warn(
        { layer, image: imageReference, code: error.code, reason: error.message, err: error.cause },
        'layer is not lazy: containerd pulls it whole',
      );
      return false;
    }
  }

  /** containerd cannot unpack the layer beside the snapshot that is there: the pull has to fail. */
  #refusal(remote: RemoteRequest, there: StoredSnapshot, cause: NotLazyError): SnapshotError {
    const { layer, imageReference } = remote.layer;
    const origin = remoteRequest(there.labels)?.layer.imageReference ?? 'another image';
    this.#contested.inc({ outcome: 'refused' });
    const error = new SnapshotError(
      'failed-precondition',
      `Refused layer ${layer} of ${imageReference}: snapshot ${there.name} was made of layer ${there.layer} of ${origin}, whose tar nobody has checked, and cannot be replaced: ${cause.message}. Remove ${origin}, then pull again`,
      { cause },
    );
    this.#logger.error(
      { layer, image: imageReference, snapshot: there.name, madeOf: there.layer, origin },
      error.message,
    );
    return error;
  }

  /** `there`: a contested snapshot whose place the new one takes. */
  async #commitRemote(
    remote: RemoteRequest,
    parent: string,
    labels: Labels,
    there: StoredSnapshot | undefined,
    signal: AbortSignal,
  ): Promise<void> {
    const { layer } = remote.layer;
    const provided = await this.#layers.provide(remote.layer, signal);
    const below = parent === '' ? undefined : this.#store.requireCommitted(parent);
    if (provided.diffId !== undefined && contradictsChain(remote.target, below, provided.diffId)) {
      throw new NotLazyError(
        'refused',
        `Refused layer ${layer} of ${remote.layer.imageReference}: its tar has the digest ${provided.diffId}, the configuration of its image names another`,
      );
    }
    if (there !== undefined && provided.diffId === undefined) {
      throw new NotLazyError('refused', 'nobody has checked the tar of this layer either');
    }
    const owner = provided.rootOwner ?? below?.owner ?? { uid: 0, gid: 0 };
    const id = this.#store.reserveId();
    this.#making.add(id);
    try {
      const hasCover = await this.#cover(id, provided, remote, parent, signal);
      const created = { id, kind: 'committed', parent, labels, layer, owner, hasCover } as const;
      if (there !== undefined) {
        this.#store.replace(there, TARGET_LABEL, { ...created, name: there.name });
        this.#contested.inc({ outcome: 'replaced' });
        this.#logger.error(
          { snapshot: there.name, madeOf: there.layer, layer, image: remote.layer.imageReference },
          'a snapshot was made of a layer whose tar nobody has checked; it stands on one that was checked from now on',
        );
        return;
      }
      // Another parent under the same chain ID (a namespace that unpacked it the normal way): containerd finds ours by label.
      const isTaken = this.#store.find(remote.target) !== undefined;
      const name = isTaken ? `${remote.target}@${parent}` : remote.target;
      this.#store.create({ ...created, name });
    } finally {
      this.#making.delete(id);
    }
    this.#store.forgetNotLazy(layer);
  }

  /** Builds the layer's cover where it needs one. @throws NotLazyError when the layer cannot lie on what is below it. */
  async #cover(
    id: number,
    provided: ProvidedLayer,
    remote: RemoteRequest,
    parent: string,
    signal: AbortSignal,
  ): Promise<boolean> {
    const implied = provided.impliedDirectories ?? [];
    if (parent === '' || implied.length === 0) return false;
    const below = this.#store.requireCommitted(parent);
    const chain = [below, ...this.#store.ancestors(below)];
    const lowers = await Promise.all(chain.map((ancestor) => this.#rootsOf(ancestor, signal)));
    const cover = await this.#folders.createCover(id, signal);
    const result = await buildCover(
      { cover, layer: provided.path, lowers: lowers.flat(), implied: implied.map((path) => path.toString('latin1')) },
      signal,
    );
    switch (result.kind) {
      case 'built':
        if (!result.used) await this.#folders.remove(id, signal);
        return result.used;
      case 'conflict':
        throw new NotLazyError(
          'unsupported',
          `Layer ${remote.layer.layer} writes below ${JSON.stringify(result.path)}, which is no directory in the layers below`,
        );
      case 'failed':
        throw new NotLazyError(
          'unsupported',
          `Cannot build a cover for layer ${remote.layer.layer}: ${result.message}`,
        );
    }
  }

  /** A layer that is being made ready is not released, although no snapshot stands on it yet. */
  #hold(layer: Digest): void {
    this.#inFlight.set(layer, (this.#inFlight.get(layer) ?? 0) + 1);
  }

  #letGo(layer: Digest): void {
    const left = (this.#inFlight.get(layer) ?? 1) - 1;
    if (left === 0) this.#inFlight.delete(layer);
    else this.#inFlight.set(layer, left);
  }

  async #cleanup(signal: AbortSignal): Promise<void> {
    // Folders first, rows after: a row always comes before its folder.
    const folders = await this.#folders.ids(signal);
    const rows = this.#store.ids();
    for (const id of folders) {
      if (!rows.has(id) && !this.#making.has(id)) await this.#folders.remove(id, signal);
    }
    for (const layer of this.#unneeded) {
      if (this.#inFlight.has(layer)) continue;
      this.#unneeded.delete(layer);
      if (!this.#store.layers().has(layer)) await this.#layers.release(layer, signal);
    }
  }

  /** Coalesced: a garbage collection removes hundreds of snapshots in a row. */
  #cleanupSoon(): void {
    if (this.#isCleanupQueued || this.#closed.signal.aborted) return;
    this.#isCleanupQueued = true;
    const run = this.#cleaning.then(() => {
      this.#isCleanupQueued = false;
      return this.#cleanup(this.#closed.signal);
    });
    this.#cleaning = run.catch((error: unknown) => {
      if (!this.#closed.signal.aborted) this.#logger.error({ err: error }, 'cannot clean up after removed snapshots');
    });
  }
}

/** A fault of ours must not keep a container from starting: containerd can always pull the layer whole. */
function asNotLazy(cause: unknown): NotLazyError {
  if (cause instanceof NotLazyError) return cause;
  return new NotLazyError('unsupported', `Cannot provide the layer: ${String(cause)}`, { cause });
}

/** The result of `work`, or a rejection as soon as the signal aborts; the work goes on. */
function untilAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = (): void => reject(new SnapshotError('cancelled', 'The caller has gone'));
    if (signal.aborted) return onAbort();
    signal.addEventListener('abort', onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}
