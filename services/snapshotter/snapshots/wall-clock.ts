import koffi from 'koffi';
import type { Nanoseconds } from './snapshot.ts';

const CLOCK_REALTIME = 0;

let clockGettime: ((clock: number, time: BigInt64Array) => number) | undefined;

/** Nanoseconds since the epoch: containerd compares our times with its own, and a clock of whole milliseconds is behind. */
export function wallClock(): Nanoseconds {
  clockGettime ??= koffi.load(null).func('int clock_gettime(int clock, _Out_ int64_t *time)') as NonNullable<
    typeof clockGettime
  >;
  const time = new BigInt64Array(2);
  clockGettime(CLOCK_REALTIME, time);
  return (time[0] ?? 0n) * 1_000_000_000n + (time[1] ?? 0n);
}
