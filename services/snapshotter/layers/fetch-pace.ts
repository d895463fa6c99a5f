import type { FetchPriority } from './span-source.ts';

const MiB = 1024 * 1024;

/** Bounds of the scheduler. */
export interface FetchLimits {
  /** Runs in flight at once. Demand has many: each is a thread of somebody's program that stands still. */
  readonly slots: Readonly<Record<FetchPriority, number>>;
  /** Bytes of the blob in one range request. */
  readonly runBytes: Readonly<Record<FetchPriority, number>>;
  /** Bytes in flight or waiting to be decoded, of each class: what bounds the memory. One run is always allowed. */
  readonly flightBytes: Readonly<Record<FetchPriority, number>>;
  /** What a request for a miss may take along of what lies behind it: as much as the link brings in this time, */
  readonly tailMs: number;
  /** so many bytes at most, */
  readonly tailBytes: number;
  /** and nothing where requests bring fewer bytes per ms, latency included: there the link is for what is waited for. */
  readonly tailRate: number;
  /** Background runs are cut to what the link brings in this time, so that a demand read finds it free soon. */
  readonly backgroundRunMs: number;
  /** Nothing in the background until there was no demand for this long. */
  readonly quietMs: number;
  /** Bytes per second in the background; 0 = no limit. */
  readonly backgroundRate: number;
  /** A demand read that finds its span this far behind in a lower run's stream overtakes it. */
  readonly overtakeBytes: number;
  /** How long a reader waits, counted from the first failure of its span, until it gets EIO. */
  readonly giveUpMs: number;
  /** First pause after all sources have failed; doubles up to `maxBackOffMs`. */
  readonly backOffMs: number;
  readonly maxBackOffMs: number;
  /** Wrong bytes from the last source until the reader gets EIO. */
  readonly mismatches: number;
}

export const FETCH_LIMITS: FetchLimits = {
  slots: { demand: 24, prefetch: 6, background: 2 },
  runBytes: { demand: 4 * MiB, prefetch: 4 * MiB, background: 8 * MiB },
  flightBytes: { demand: 48 * MiB, prefetch: 16 * MiB, background: 12 * MiB },
  tailMs: 12,
  tailBytes: MiB,
  tailRate: 24_000,
  backgroundRunMs: 250,
  quietMs: 400,
  backgroundRate: 0,
  overtakeBytes: MiB / 2,
  giveUpMs: 10_000,
  backOffMs: 100,
  maxBackOffMs: 2_000,
  mismatches: 2,
};

/** Smallest background run, so that a stalled link is not asked byte by byte. */
const MIN_BACKGROUND_RUN = MiB / 2;

/** Answers below this size tell more of the latency than of the link. */
const MEASURED_BYTES = 128 * 1024;

/** How much may be in flight, and how fast: slots, bytes, the background's rate. */
export class FetchPace {
  readonly #limits: FetchLimits;
  readonly #now: () => number;
  readonly #runs: Record<FetchPriority, number> = { demand: 0, prefetch: 0, background: 0 };
  readonly #bytes: Record<FetchPriority, number> = { demand: 0, prefetch: 0, background: 0 };
  /** Bytes per millisecond that a run has brought lately; 0 = not known. */
  #throughput = 0;
  #lastDemandMs: number;
  /** When the background may send its next run, as its rate allows. */
  #backgroundFreeMs = 0;

  constructor(limits: FetchLimits, now: () => number) {
    this.#limits = limits;
    this.#now = now;
    this.#lastDemandMs = now();
  }

  get running(): number {
    return this.#runs.demand + this.#runs.prefetch + this.#runs.background;
  }

  noteDemand(): void {
    this.#lastDemandMs = this.#now();
  }

  /** Whether a run may start now. */
  allows(priority: FetchPriority): boolean {
    const runs = this.#runs[priority];
    if (runs >= this.#limits.slots[priority]) return false;
    if (runs > 0 && this.#bytes[priority] >= this.#limits.flightBytes[priority]) return false;
    return priority !== 'background' || (this.#runs.demand === 0 && this.backgroundPauseMs() <= 0);
  }

  /** Until the background may go on, as far as time alone decides it. */
  backgroundPauseMs(): number {
    const now = this.#now();
    return Math.max(this.#lastDemandMs + this.#limits.quietMs - now, this.#backgroundFreeMs - now);
  }

  runBytes(priority: FetchPriority): number {
    const limit = this.#limits.runBytes[priority];
    if (priority !== 'background' || this.#throughput === 0) return limit;
    return Math.min(limit, Math.max(MIN_BACKGROUND_RUN, this.#throughput * this.#limits.backgroundRunMs));
  }

  /** Bytes behind a miss that its request takes along. */
  tailBytes(): number {
    const { tailRate, tailMs, tailBytes } = this.#limits;
    return this.#throughput < tailRate ? 0 : Math.min(tailBytes, this.#throughput * tailMs);
  }

  started(priority: FetchPriority, bytes: number): void {
    this.#runs[priority]++;
    this.#bytes[priority] += bytes;
    if (priority === 'background') this.tookBackground(bytes);
  }

  /** Bytes of background work that no run was counted for beforehand. */
  tookBackground(bytes: number): void {
    if (this.#limits.backgroundRate === 0) return;
    this.#backgroundFreeMs =
      Math.max(this.#backgroundFreeMs, this.#now()) + (bytes / this.#limits.backgroundRate) * 1000;
  }

  ended(priority: FetchPriority, bytes: number): void {
    this.#runs[priority]--;
    this.#bytes[priority] -= bytes;
  }

  measured(bytes: number, elapsedMs: number): void {
    if (bytes < MEASURED_BYTES || elapsedMs <= 0) return;
    const rate = bytes / elapsedMs;
    this.#throughput = this.#throughput === 0 ? rate : this.#throughput * 0.7 + rate * 0.3;
  }
}
