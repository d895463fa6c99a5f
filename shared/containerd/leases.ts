import { randomUUID } from 'node:crypto';
import type { ContainerdClient } from './containerd-client.ts';
import { LeasesService } from './gen/leases.ts';

/** Label that tells containerd's garbage collector when a lease that nobody deleted is void. */
const EXPIRE_LABEL = 'containerd.io/gc.expire';

/** In the name of each lease of this process, so that those which others have left can be told from them. */
const PROCESS = randomUUID();

/** A pull that takes longer than a day has failed. */
const MAX_LEASE_MS = 24 * 60 * 60 * 1000;

/**
 * Runs `work` with a client whose new content and snapshots the garbage collector leaves alone until `work` has ended.
 * The lease expires by itself after `expiryMs` should this process die.
 */
export async function withLease<T>(
  client: ContainerdClient,
  options: { readonly purpose: string; readonly expiryMs: number },
  signal: AbortSignal,
  work: (leased: ContainerdClient) => Promise<T>,
): Promise<T> {
  const expiry = new Date(Date.now() + Math.min(options.expiryMs, MAX_LEASE_MS)).toISOString();
  const id = `${prefixOf(options.purpose)}${PROCESS}-${randomUUID()}`;
  await client.unary(LeasesService.create, { id, labels: { [EXPIRE_LABEL]: expiry } }, signal);
  try {
    return await work(client.underLease(id));
  } finally {
    // Also after an abort; a lease that stays is only a delay of the garbage collection.
    await client.unary(LeasesService.delete, { id, sync: false }, AbortSignal.timeout(5000)).catch(() => undefined);
  }
}

/**
 * Deletes the leases that other processes took for this purpose. Only for a purpose that one process at a time has on a machine.
 *
 * @returns how many there were
 */
export async function deleteLeftLeases(
  client: ContainerdClient,
  purpose: string,
  signal: AbortSignal,
): Promise<number> {
  const { leases } = await client.unary(LeasesService.list, { filters: [`id~="^${prefixOf(purpose)}"`] }, signal);
  const left = leases.filter(({ id }) => id.startsWith(prefixOf(purpose)) && !id.includes(PROCESS));
  for (const { id } of left) await client.unary(LeasesService.delete, { id, sync: false }, signal);
  return left.length;
}

function prefixOf(purpose: string): string {
  return `kindling-${purpose}-`;
}
