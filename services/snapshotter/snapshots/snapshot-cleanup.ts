import type { Digest } from '#shared/digest/digest.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import type { LayerProvider } from './layer-provider.ts';
import type { SnapshotFolders } from './snapshot-folders.ts';
import type { SnapshotStore } from './snapshot-store.ts';

export interface SnapshotCleanupDeps {
  readonly store: SnapshotStore;
  readonly folders: SnapshotFolders;
  readonly layers: LayerProvider;
  readonly logger: Logger;
}

/** Takes away what no snapshot needs, and leaves alone what is being made. */
export class SnapshotCleanup {
  readonly #deps: SnapshotCleanupDeps;
  readonly #making = new Set<number>();
  /** Layers whose last snapshot may have gone. */
  readonly #unneeded = new Set<Digest>();
  /** How many pulls and Prepares are making a layer ready. */
  readonly #inFlight = new Map<Digest, number>();
  readonly #closed = new AbortController();
  #running: Promise<void> = Promise.resolve();
  #isQueued = false;

  constructor(deps: SnapshotCleanupDeps) {
    this.#deps = deps;
  }

  /** Deletes folders without a snapshot and releases layers that no snapshot needs. One run at a time. */
  async run(signal: AbortSignal): Promise<void> {
    const run = this.#running.then(() => this.#clean(signal));
    this.#running = run.catch(() => undefined);
    await run;
  }

  /** Coalesced: a garbage collection removes hundreds of snapshots in a row. */
  soon(): void {
    if (this.#isQueued || this.#closed.signal.aborted) return;
    this.#isQueued = true;
    const run = this.#running.then(() => {
      this.#isQueued = false;
      return this.#clean(this.#closed.signal);
    });
    this.#running = run.catch((error: unknown) => {
      if (!this.#closed.signal.aborted)
        this.#deps.logger.error({ err: error }, 'cannot clean up after removed snapshots');
    });
  }

  /** Ends and waits for what runs. */
  async close(): Promise<void> {
    this.#closed.abort();
    await this.#running;
  }

  /** A snapshot that gets its folder before its row: until it is disposed the folder is no orphan. */
  spare(id: number): Disposable {
    this.#making.add(id);
    return { [Symbol.dispose]: () => this.#making.delete(id) };
  }

  /** A snapshot that stood on the layer has gone, or none has come to stand on it. */
  unneeded(layer: Digest): void {
    this.#unneeded.add(layer);
  }

  /** A layer that is being made ready is not released, although no snapshot stands on it yet. */
  hold(layer: Digest): void {
    this.#inFlight.set(layer, (this.#inFlight.get(layer) ?? 0) + 1);
  }

  letGo(layer: Digest): void {
    const left = (this.#inFlight.get(layer) ?? 1) - 1;
    if (left === 0) this.#inFlight.delete(layer);
    else this.#inFlight.set(layer, left);
  }

  async #clean(signal: AbortSignal): Promise<void> {
    const { folders, store, layers } = this.#deps;
    // Folders first, rows after: a row always comes before its folder.
    const ids = await folders.ids(signal);
    const rows = store.ids();
    for (const id of ids) {
      if (!rows.has(id) && !this.#making.has(id)) await folders.remove(id, signal);
    }
    store.spare();
    for (const layer of this.#unneeded) {
      if (this.#inFlight.has(layer)) continue;
      this.#unneeded.delete(layer);
      if (!store.layers().has(layer)) await layers.release(layer, signal);
    }
  }
}
