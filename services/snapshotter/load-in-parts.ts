import { setTimeout as sleep } from 'node:timers/promises';

/** Enough for the requests that wait in the kernel. */
const BETWEEN_PARTS_MS = 2;

/** Loads modules while readers wait for this process: one by one, with a turn before each in which they are answered. */
export async function loadInParts(parts: readonly (() => Promise<unknown>)[]): Promise<void> {
  for (const part of parts) {
    await sleep(BETWEEN_PARTS_MS);
    await part();
  }
}
