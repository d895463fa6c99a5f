/**
 * Shares one running piece of work among all who ask for the same key meanwhile. A waiter that is aborted leaves; the
 * work goes on for the others, so it must have a bound of its own.
 */
export class SingleFlight<V> {
  readonly #running = new Map<string, Promise<V>>();

  run(key: string, work: () => Promise<V>, signal: AbortSignal): Promise<V> {
    let running = this.#running.get(key);
    if (running === undefined) {
      running = work().finally(() => this.#running.delete(key));
      // Every waiter may have left by the time it fails.
      running.catch(() => {});
      this.#running.set(key, running);
    }
    return untilAborted(running, signal);
  }
}

/** Settles as `promise`, or rejects with the signal's reason as soon as it is aborted. */
async function untilAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted();
  const aborted = Promise.withResolvers<never>();
  const onAbort = (): void => aborted.reject(signal.reason);
  signal.addEventListener('abort', onAbort, { once: true });
  try {
    return await Promise.race([promise, aborted.promise]);
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
}
