import type { Digest } from '#shared/digest/digest.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import { Counter, type Registry } from '#shared/telemetry/metrics.ts';
import type { LayerProvider } from './layer-provider.ts';
import { overlayMounts, type SnapshotMount } from './overlay-mounts.ts';
import { remoteRequest } from './remote-labels.ts';
import { RemoteSnapshots } from './remote-snapshots.ts';
import { checkLabels, checkName, SNAPSHOT_LIMITS, type Snapshot, type Usage } from './snapshot.ts';
import { SnapshotCleanup } from './snapshot-cleanup.ts';
import { SnapshotError } from './snapshot-error.ts';
import { parseFilters } from './snapshot-filter.ts';
import type { SnapshotFolders } from './snapshot-folders.ts';
import { SnapshotRoots } from './snapshot-roots.ts';
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
  readonly remote: RemoteSnapshots;
  readonly #store: SnapshotStore;
  readonly #folders: SnapshotFolders;
  readonly #layers: LayerProvider;
  readonly #prepares: Counter<'result'>;
  readonly #roots: SnapshotRoots;
  readonly #cleanup: SnapshotCleanup;

  constructor(deps: SnapshotServiceDeps) {
    this.#store = deps.store;
    this.#folders = deps.folders;
    this.#layers = deps.layers;
    this.#prepares = new Counter({
      name: 'kindling_snapshot_prepares_total',
      help: 'Prepare and View calls by what came of them: lazy, not-lazy (pulled whole), normal (no layer asked for).',
      labelNames: ['result'],
      registers: [deps.metrics],
    });
    this.#roots = new SnapshotRoots(deps.folders, deps.layers, ({ parent }) => deps.store.find(parent), deps.logger);
    this.#cleanup = new SnapshotCleanup(deps);
    this.remote = new RemoteSnapshots({ ...deps, roots: this.#roots, cleanup: this.#cleanup });
  }

  /** Deletes what a crash left behind. */
  async start(signal: AbortSignal): Promise<void> {
    await this.#cleanup.run(signal);
  }

  /** Rejects with `already-exists` when the snapshot that containerd wants in the end is there (again): no mounts then. */
  async prepare(key: string, parent: string, labels: Labels, signal: AbortSignal): Promise<readonly SnapshotMount[]> {
    checkName(key, 'key');
    checkLabels(labels);
    const remote = remoteRequest(labels);
    if (remote !== undefined && (await this.remote.provide(remote, parent, labels, signal))) {
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
    if (removed.layer !== undefined) this.#cleanup.unneeded(removed.layer);
    // Deletion takes its time and may fail; containerd is told about the metadata, which is what counts.
    this.#cleanup.soon();
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

  /** Deletes folders without a snapshot and releases layers that no snapshot needs. */
  async cleanup(signal: AbortSignal): Promise<void> {
    await this.#cleanup.run(signal);
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
    await Promise.all([this.remote.close(), this.#cleanup.close()]);
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
    const [lowers] = await Promise.all([
      this.#roots.of(ancestors, signal),
      this.#folders.create(snapshot.id, snapshot.owner, signal),
    ]);
    return overlayMounts({
      kind: snapshot.kind,
      fs: this.#folders.fs(snapshot.id),
      work: this.#folders.work(snapshot.id),
      lowers,
    });
  }
}
