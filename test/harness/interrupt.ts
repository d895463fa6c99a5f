/**
 * Everything that must be taken away also when the run is interrupted (SIGINT, SIGTERM). State of the whole process on
 * purpose: a signal ends the process as a whole.
 */
const live = new Set<AsyncDisposable>();
let listening = false;

/** Registers `resource`; its own dispose must call the function returned. */
export function disposeOnInterrupt(resource: AsyncDisposable): () => void {
  live.add(resource);
  if (!listening) {
    listening = true;
    for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => void disposeAll(name));
  }
  return () => live.delete(resource);
}

async function disposeAll(name: NodeJS.Signals): Promise<void> {
  // Those made last stand on those made first.
  for (const resource of [...live].toReversed()) {
    try {
      await resource[Symbol.asyncDispose]();
    } catch (error) {
      console.error(error);
    }
  }
  process.exit(name === 'SIGINT' ? 130 : 143);
}
