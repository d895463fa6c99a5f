/** When a transfer is late. */
export interface PaceLimits {
  /** How much slower than usual it is then, within these bounds. */
  readonly factor: number;
  readonly leastMs: number;
  readonly mostMs: number;
  /** While nothing is known. */
  readonly unknownMs: number;
}

/** Of what a node gets: then another peer is asked as well. */
export const DOWNLOAD_PACE: PaceLimits = { factor: 3, leastMs: 300, mostMs: 3_000, unknownMs: 1_000 };
/** Of what it gives: then the next need not wait for it. Where this node's own link is narrow all of them take long. */
export const UPLOAD_PACE: PaceLimits = { factor: 3, leastMs: 1_000, mostMs: 15_000, unknownMs: 4_000 };

/** Of answers of distributors: then another of them is asked as well. */
export const ANSWER_PACE: PaceLimits = { factor: 3, leastMs: 150, mostMs: 750, unknownMs: 400 };

const WEIGHT = 0.15;

/** Learns how long transfers or answers take, so that one that is slow for this network can be told. */
export class TransferPace {
  readonly #limits: PaceLimits;
  #meanMs: number | undefined;
  #deviationMs = 0;

  constructor(limits: PaceLimits) {
    this.#limits = limits;
  }

  took(ms: number): void {
    if (this.#meanMs === undefined) {
      this.#meanMs = ms;
      this.#deviationMs = ms / 2;
      return;
    }
    this.#deviationMs += WEIGHT * (Math.abs(ms - this.#meanMs) - this.#deviationMs);
    this.#meanMs += WEIGHT * (ms - this.#meanMs);
  }

  /** After this long it is late. */
  get lateMs(): number {
    const { factor, leastMs, mostMs, unknownMs } = this.#limits;
    if (this.#meanMs === undefined) return unknownMs;
    return Math.min(mostMs, Math.max(leastMs, this.#meanMs * factor + this.#deviationMs * 2));
  }
}
