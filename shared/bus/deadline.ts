import { BusError } from './bus.ts';

/**
 * Ends a wait on something that cannot be cancelled itself: after `ms`, or when `signal` is aborted. The work goes on
 * without us; its later failure is swallowed here.
 *
 * @throws BusError `timeout` or `cancelled`
 */
export async function within<T>(work: Promise<T>, ms: number, signal: AbortSignal, what: string): Promise<T> {
  work.catch(() => {});
  if (signal.aborted) throw cancelled(signal, what);
  let timer: NodeJS.Timeout | undefined;
  let onAbort: (() => void) | undefined;
  try {
    return await Promise.race([
      work,
      new Promise<never>((_, reject) => {
        timer = setTimeout(() => reject(new BusError('timeout', `Cannot ${what}: no answer within ${ms} ms`)), ms);
        onAbort = () => reject(cancelled(signal, what));
        signal.addEventListener('abort', onAbort, { once: true });
      }),
    ]);
  } finally {
    clearTimeout(timer);
    if (onAbort) signal.removeEventListener('abort', onAbort);
  }
}

export function cancelled(signal: AbortSignal, what: string): BusError {
  return new BusError('cancelled', `Cannot ${what}: cancelled`, { cause: signal.reason });
}

/** Resolves after `ms` or as soon as `signal` is aborted; never rejects. */
export async function pause(ms: number, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise<void>((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener('abort', done, { once: true });
  });
}
