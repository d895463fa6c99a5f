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

/**
 * Of the nodes that want a layer which nobody has indexed, at the same time, one reads the blob and publishes its index; the others wait
 * for that. Without a bus, or when that node has gone or is slow, each reads for itself.
 */
export class IndexTurn {
  readonly #claims: Pick<Claims, 'claim'> | undefined;

  constructor(claims: Pick<Claims, 'claim'> | undefined) {
    this.#claims = claims;
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
    const untilMs = performance.now() + waitMs;
    for (let lookMs = LOOK_MS; ; lookMs = Math.min(MAX_LOOK_MS, lookMs * 2)) {
      let claim: Claim | undefined;
      try {
        claim = await this.#claims.claim(`read-${hexOf(layer)}`, signal);
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
      if (claim !== undefined || performance.now() >= untilMs) return { claim };
      await sleep(lookMs, undefined, { signal });
    }
  }
}
