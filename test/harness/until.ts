import { setTimeout as sleep } from 'node:timers/promises';

const POLL_MS = 50;
/** Far more than a busy machine takes. */
const PATIENCE_MS = 120_000;

/**
 * Asks until it is so, for what nothing tells.
 *
 * @param log What is shown where it does not happen.
 */
export async function until(
  happened: () => boolean | Promise<boolean>,
  signal: AbortSignal,
  log: () => string = () => '',
): Promise<void> {
  const end = performance.now() + PATIENCE_MS;
  while (!(await happened())) {
    if (performance.now() > end) throw new Error(`It did not happen within ${PATIENCE_MS} ms\n${log()}`);
    await sleep(POLL_MS, undefined, { signal });
  }
}
