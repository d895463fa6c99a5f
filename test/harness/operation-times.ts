import { setImmediate as turn } from 'node:timers/promises';
import { monotonicMs } from './monotonic-clock.ts';

/** What the agent is doing when it is killed. */
export const KILL_KINDS = [
  'anything',
  'pull',
  'mount',
  'span fetch',
  'commit',
  'eviction',
  'take-over',
  'reload',
] as const;
export type KillKind = (typeof KILL_KINDS)[number];

/** An operation that the agent is killed in. */
export interface Aim {
  readonly kind: KillKind;
  /** Begins it; settles with its answer. A rejection other than `unavailable` is a failure of the soak. */
  readonly begin: () => Promise<unknown>;
  /** Whether the part that is aimed at has begun, where it is not the whole; looked at all the time. */
  readonly begun?: () => boolean;
  /** A last word on whether a kill fell inside, after the answer. */
  readonly confirm?: () => Promise<boolean>;
}

/** Durations remembered of a kind: the load of the machine changes. */
const DURATIONS = 5;

/** How long operations take when they are left alone. */
export class OperationTimes {
  readonly #durations = new Map<KillKind, number[]>();

  /** Lets the operation be, and notes how long it takes. */
  async measure(aim: Aim): Promise<void> {
    let state: 'asked' | 'answered' = 'asked';
    const operation = Promise.resolve(aim.begin()).finally(() => {
      state = 'answered';
    });
    operation.catch(() => undefined);
    const hasEnded = (): boolean => state === 'answered';
    while (!hasEnded() && aim.begun?.() === false) await turn();
    // What is over before its beginning was seen takes next to no time.
    const begunAt = monotonicMs();
    await operation;
    this.note(aim.kind, monotonicMs() - begunAt);
  }

  note(kind: KillKind, ms: number): void {
    this.#durations.set(kind, [...(this.#durations.get(kind) ?? []), ms].slice(-DURATIONS));
  }

  /** A moment within the typical duration, drawn evenly. @throws Error when nobody has measured it */
  momentWithin(kind: KillKind): number {
    const sorted = (this.#durations.get(kind) ?? []).toSorted((a, b) => a - b);
    const typical = sorted[sorted.length >> 1];
    if (typical === undefined) throw new Error(`Nobody has measured how long ${kind} takes`);
    return Math.random() * typical;
  }
}
