import type { Digest } from '#shared/digest/digest.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import { requireOwnTar } from './chain-check.ts';
import { NotLazyError, type LayerProvider } from './layer-provider.ts';
import { remoteRequest } from './remote-labels.ts';
import { SnapshotError } from './snapshot-error.ts';
import type { SnapshotFolders } from './snapshot-folders.ts';
import type { StoredSnapshot } from './snapshot-store.ts';

/** Where the files of committed snapshots are: their folders, or the layers that they stand for. */
export class SnapshotRoots {
  readonly #folders: SnapshotFolders;
  readonly #layers: LayerProvider;
  readonly #parentOf: (snapshot: StoredSnapshot) => StoredSnapshot | undefined;
  readonly #logger: Logger;

  constructor(
    folders: SnapshotFolders,
    layers: LayerProvider,
    parentOf: (snapshot: StoredSnapshot) => StoredSnapshot | undefined,
    logger: Logger,
  ) {
    this.#folders = folders;
    this.#layers = layers;
    this.#parentOf = parentOf;
    this.#logger = logger;
  }

  /** Read-only roots of the snapshots, topmost first. @throws SnapshotError `unavailable` */
  async of(snapshots: readonly StoredSnapshot[], signal: AbortSignal): Promise<readonly string[]> {
    return (await Promise.all(snapshots.map((snapshot) => this.#rootsOf(snapshot, signal)))).flat();
  }

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
      const provided = await this.#layers.provide(remote.layer, signal);
      // More may be known of it by now than when the snapshot was made.
      requireOwnTar(remote, this.#parentOf(snapshot), provided.diffId);
      return provided.path;
    }
  }
}
