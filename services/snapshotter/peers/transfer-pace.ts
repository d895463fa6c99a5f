/** How much slower than usual a transfer is before another peer is asked as well. */
const FACTOR = 3;
const MIN_MS = 300;
const MAX_MS = 3_000;
const WEIGHT = 0.15;

/** Learns how long transfers take, so that one that is slow for this network can be told. */
export class TransferPace {
  #meanMs: number | undefined;
  #deviationMs = 0;

  took(ms: number): void {
    if (this.#meanMs === undefined) {
      this.#meanMs = ms;
      this.#deviationMs = ms / 2;
      return;
    }
    this.#deviationMs += WEIGHT * (Math.abs(ms - this.#meanMs) - this.#deviationMs);
    this.#meanMs += WEIGHT * (ms - this.#meanMs);
  }

  /** After this long without a span a transfer is raced by another. */
  get hedgeMs(): number {
    if (this.#meanMs === undefined) return 1_000;
    return Math.min(MAX_MS, Math.max(MIN_MS, this.#meanMs * FACTOR + this.#deviationMs * 2));
  }
}
