/**
 * Runs `work` with a signal that Ctrl-C and SIGTERM abort; a second Ctrl-C ends the process as usual. However `work` puts it that
 * it was stopped, it rejects with "interrupted" then.
 */
export async function untilInterrupted<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  const stop = (): void => controller.abort(new Error('interrupted'));
  process.once('SIGINT', stop);
  process.once('SIGTERM', stop);
  try {
    return await work(controller.signal);
  } catch (cause) {
    throw controller.signal.aborted ? new Error('interrupted', { cause }) : cause;
  } finally {
    process.off('SIGINT', stop);
    process.off('SIGTERM', stop);
  }
}
