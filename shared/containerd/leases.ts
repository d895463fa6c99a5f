import { randomUUID } from 'node:crypto';
import type { ContainerdClient } from './containerd-client.ts';
import { LeasesService } from './gen/leases.ts';

/** Label that tells containerd's garbage collector when a lease that nobody deleted is void. */
const EXPIRE_LABEL = 'containerd.io/gc.expire';

/** A pull that takes longer than a day has failed. */
export const MAX_LEASE_MS = 24 * 60 * 60 * 1000;

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
  const id = `kindling-${options.purpose}-${randomUUID()}`;
  await client.unary(LeasesService.create, { id, labels: { [EXPIRE_LABEL]: expiry } }, signal);
  try {
    return await work(client.underLease(id));
  } finally {
    // Also after an abort; a lease that stays is only a delay of the garbage collection.
    await client.unary(LeasesService.delete, { id, sync: false }, AbortSignal.timeout(5000)).catch(() => undefined);
  }
}
