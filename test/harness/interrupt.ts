/**
 * Everything that must be taken away also when the run is interrupted (SIGINT, SIGTERM). State of the whole process on
 * purpose: a signal ends the process as a whole.
 */
const live = new Set<AsyncDisposable>();
let listening = false;

/**
 * Registers `resource`; its own dispose must call the function returned, last: until then the process does not end by a signal, and it
 * may be disposed twice.
 */
export function disposeOnInterrupt(resource: AsyncDisposable): () => void {
  live.add(resource);
  if (!listening) {
    listening = true;
    for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => void disposeAll(name));
  }
  return () => live.delete(resource);
}

async function disposeAll(name: NodeJS.Signals): Promise<void> {
  // Those made last stand on those made first; some are still being made.
  for (let last = [...live].at(-1); last !== undefined; last = [...live].at(-1)) {
    live.delete(last);
    try {
      await last[Symbol.asyncDispose]();
    } catch (error) {
      console.error(error);
    }
  }
  process.exit(name === 'SIGINT' ? 130 : 143);
}
