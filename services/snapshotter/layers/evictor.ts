import type { Digest } from '#shared/digest/digest.ts';

/** A layer as eviction sees it. */
export interface Evictable {
  readonly layer: Digest;
  readonly diskBytes: number;
}

/** Evicting goes this far below the quota, so that not every span evicts. */
const EVICT_TO = 0.95;

/** Keeps the layers within the disk quota, and makes room on a full disk. Whole layers go, those not used for longest first. */
export class Evictor<L extends Evictable> {
  readonly #quotaBytes: number;
  readonly #layers: () => Iterable<L>;
  readonly #mayEvict: (layer: L) => boolean;
  readonly #remove: (layer: L) => Promise<void>;
  readonly #lastUsedMs = new Map<Digest, number>();
  #turn: Promise<unknown> = Promise.resolve();

  constructor(options: {
    /** 0 = no limit. */
    readonly quotaBytes: number;
    readonly layers: () => Iterable<L>;
    /** False for what is mounted or about to be. */
    readonly mayEvict: (layer: L) => boolean;
    readonly remove: (layer: L) => Promise<void>;
  }) {
    this.#quotaBytes = options.quotaBytes;
    this.#layers = options.layers;
    this.#mayEvict = options.mayEvict;
    this.#remove = options.remove;
  }

  used(layer: Digest, atMs = Date.now()): void {
    this.#lastUsedMs.set(layer, atMs);
  }

  forget(layer: Digest): void {
    this.#lastUsedMs.delete(layer);
  }

  /** Whether `bytes` more would stay within the quota. */
  allows(bytes: number): boolean {
    return this.#quotaBytes === 0 || this.#bytes() + bytes <= this.#quotaBytes;
  }

  /** To be called when layers have grown or were released. */
  async keepQuota(): Promise<void> {
    if (this.allows(0)) return;
    await this.#evict(() => this.#bytes() <= this.#quotaBytes * EVICT_TO);
  }

  /** The disk is full: evicts one layer, whatever the quota says. False: there is none to evict. */
  async makeRoom(): Promise<boolean> {
    let left = 1;
    return await this.#evict(() => left-- <= 0);
  }

  #bytes(): number {
    let sum = 0;
    for (const layer of this.#layers()) sum += layer.diskBytes;
    return sum;
  }

  #evict(enough: () => boolean): Promise<boolean> {
    const turn = this.#turn.then(async () => {
      let evicted = false;
      while (!enough()) {
        const victim = Array.from(this.#layers())
          .filter((layer) => this.#mayEvict(layer))
          .sort((a, b) => (this.#lastUsedMs.get(a.layer) ?? 0) - (this.#lastUsedMs.get(b.layer) ?? 0))[0];
        if (victim === undefined) break;
        await this.#remove(victim);
        this.forget(victim.layer);
        evicted = true;
      }
      return evicted;
    });
    this.#turn = turn.catch(() => undefined);
    return turn;
  }
}
