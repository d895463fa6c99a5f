import { mkdir, readdir, rmdir } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { hexOf, type Digest } from '#shared/digest/digest.ts';
import { backingFile } from '../mounts/mount-table.ts';
import type { Mounter } from '../mounts/mounter.ts';

/** Hex digits of a mount's name: overlayfs takes all its layers' paths in one page, so they must be short. */
const NAME_DIGITS = 16;
/** Mounts below those that are known: of agents that were killed within mount(2), one for each at most. */
const MAX_UNKNOWN = 8;

interface Mounted {
  /** From bottom to top. */
  readonly sources: readonly string[];
}

/**
 * The EROFS mounts of layers, one folder each. A layer that has become complete is mounted once more on top, from the disk:
 * containers that run keep the mount they have, later ones do not depend on this process.
 */
export class LayerMounts {
  readonly #folder: string;
  readonly #mounter: Mounter;
  readonly #mounted = new Map<Digest, Mounted>();
  readonly #turns = new Map<Digest, Promise<unknown>>();

  constructor(folder: string, mounter: Mounter) {
    this.#folder = folder;
    this.#mounter = mounter;
  }

  pathOf(layer: Digest): string {
    return join(this.#folder, hexOf(layer).slice(0, NAME_DIGITS));
  }

  /** Where the top mount reads from; undefined when there is none. */
  sourceOf(layer: Digest): string | undefined {
    return this.#mounted.get(layer)?.sources.at(-1);
  }

  get count(): number {
    return this.#mounted.size;
  }

  /** Finds the mounts that an earlier process has left. Those of layers that nobody knows are taken away, and unused mount points. */
  async recover(layers: readonly Digest[], signal: AbortSignal): Promise<readonly string[]> {
    await mkdir(this.#folder, { recursive: true, mode: 0o711 });
    const byName = new Map(layers.map((layer) => [basename(this.pathOf(layer)), layer]));
    const strangers: string[] = [];
    for (const mount of await this.#mounter.mountsWithin(this.#folder, signal)) {
      if (mount.target === this.#folder) continue;
      const layer = byName.get(basename(mount.target));
      if (layer === undefined) {
        strangers.push(mount.target);
        continue;
      }
      this.#mounted.set(layer, { sources: [...(this.#mounted.get(layer)?.sources ?? []), await backingFile(mount)] });
    }
    for (const target of strangers.toReversed()) await this.#mounter.unmount(target, { lazy: true }, signal);
    const used = new Set(Array.from(this.#mounted.keys(), (layer) => basename(this.pathOf(layer))));
    for (const name of await readdir(this.#folder)) {
      if (!used.has(name)) await this.#removePoint(join(this.#folder, name), signal);
    }
    return strangers;
  }

  /** Mounts `source` unless it is on top already. @throws MountError */
  async mount(layer: Digest, source: string, signal: AbortSignal): Promise<string> {
    return await this.#inTurn(layer, async () => {
      const target = this.pathOf(layer);
      const { sources } = this.#mounted.get(layer) ?? { sources: [] };
      if (sources.at(-1) === source) return target;
      if (sources.length === 0) await mkdir(target, { recursive: true, mode: 0o755 });
      try {
        await this.#mounter.mountErofs(source, target, signal);
      } catch (error) {
        if (sources.length === 0) await rmdir(target).catch(() => undefined);
        throw error;
      }
      this.#mounted.set(layer, { sources: [...sources, source] });
      return target;
    });
  }

  /** Takes all mounts of the layer away; running containers keep theirs. */
  async unmount(layer: Digest, signal: AbortSignal): Promise<void> {
    await this.#inTurn(layer, async () => {
      const mounted = this.#mounted.get(layer);
      if (mounted === undefined) return;
      for (let left = mounted.sources.length; left > 0; left--) {
        await this.#mounter.unmount(this.pathOf(layer), { lazy: true }, signal);
        this.#mounted.set(layer, { sources: mounted.sources.slice(0, left - 1) });
      }
      this.#mounted.delete(layer);
      await this.#removePoint(this.pathOf(layer), signal);
    });
  }

  /** Removes a mount point, with mounts on it that came about after an agent was killed within mount(2), when we had looked already. */
  async #removePoint(target: string, signal: AbortSignal): Promise<void> {
    for (let unknown = 0; unknown <= MAX_UNKNOWN; unknown++) {
      try {
        await rmdir(target);
        return;
      } catch (error) {
        if (!(error instanceof Error && 'code' in error)) throw error;
        // Somebody else's files in it, or gone: nothing of ours is there.
        if (error.code !== 'EBUSY') return;
        await this.#mounter.unmount(target, { lazy: true }, signal);
      }
    }
  }

  #inTurn<T>(layer: Digest, work: () => Promise<T>): Promise<T> {
    const before = this.#turns.get(layer) ?? Promise.resolve();
    const turn = before.then(work, work);
    this.#turns.set(layer, turn);
    const done = () => {
      if (this.#turns.get(layer) === turn) this.#turns.delete(layer);
    };
    turn.then(done, done);
    return turn;
  }
}
