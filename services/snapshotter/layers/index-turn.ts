import { setTimeout as sleep } from 'node:timers/promises';
import type { Claim, Claims } from '#shared/bus/bus.ts';
import { hexOf, type Digest } from '#shared/digest/digest.ts';

/** How often one looks whether another has the index now: at first, and at most. */
const LOOK_MS = 200;
const MAX_LOOK_MS = 1_000;
/** Whoever reads a blob for all is waited for as long as a slow link takes, and no longer than the longest. */
const LEAST_WAIT_MS = 10_000;
const SLOW_BYTES_PER_MS = 4096;
const MAX_WAIT_MS = 5 * 60_000;
/** So many read the same blob one after the other's time before those that still wait do as well. */
const TURNS = 3;

/**
 * Of the nodes that want a layer which nobody has indexed, at the same time, one reads the blob and publishes its index; the others wait
 * for that. When that node has gone, or takes too long (its link is slow, or it has much else to do), one of them reads as well, not
 * all: what is slow is not made faster by many. Without a bus each reads for itself.
 */
export class IndexTurn {
  readonly #claims: Pick<Claims, 'claim'> | undefined;
  readonly #now: () => number;

  /** `now`: milliseconds that only ever grow. */
  constructor(claims: Pick<Claims, 'claim'> | undefined, now: () => number = () => performance.now()) {
    this.#claims = claims;
    this.#now = now;
  }

  /**
   * Either what `find` gives, once it gives something, or the turn: then the caller reads the blob, and disposes of the claim (where it
   * got one) when the index is published.
   */
  async wait(
    layer: Digest,
    sizeBytes: number,
    find: () => Promise<Uint8Array | undefined>,
    signal: AbortSignal,
  ): Promise<{ readonly index: Uint8Array } | { readonly claim: Claim | undefined }> {
    if (this.#claims === undefined) return { claim: undefined };
    const waitMs = Math.min(MAX_WAIT_MS, LEAST_WAIT_MS + sizeBytes / SLOW_BYTES_PER_MS);
    const startMs = this.#now();
    for (let lookMs = LOOK_MS; ; lookMs = Math.min(MAX_LOOK_MS, lookMs * 2)) {
      const turn = Math.min(TURNS, Math.floor((this.#now() - startMs) / waitMs));
      let claim: Claim | undefined;
      try {
        if (turn < TURNS) claim = await this.#claims.claim(nameOf(layer, turn), signal);
      } catch {
        // Advisory: nobody to ask is no reason to wait.
        signal.throwIfAborted();
        return { claim: undefined };
      }
      try {
        // Also with the claim: another may have finished since we looked last.
        const index = await find();
        if (index !== undefined) {
          await claim?.[Symbol.asyncDispose]();
          return { index };
        }
      } catch (error) {
        await claim?.[Symbol.asyncDispose]();
        throw error;
      }
      if (claim !== undefined || turn === TURNS) return { claim };
      await sleep(lookMs, undefined, { signal });
    }
  }
}

/** Each turn is held apart from those before it, whose holders still read. */
function nameOf(layer: Digest, turn: number): string {
  return turn === 0 ? `read-${hexOf(layer)}` : `read-${hexOf(layer)}-${turn}`;
}
