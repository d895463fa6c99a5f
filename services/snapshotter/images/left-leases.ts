import { ContainerdClient } from '#shared/containerd/containerd-client.ts';
import { NamespacesService } from '#shared/containerd/gen/namespaces.ts';
import { deleteLeftLeases } from '#shared/containerd/leases.ts';
import { PULL_PURPOSE } from './lazy-pull.ts';

/**
 * Deletes the leases of pulls that died with an earlier agent: each would keep the snapshots that it had got to, with their mounts and
 * spans, until it expires.
 *
 * @param address containerd's socket.
 * @returns how many there were
 * @throws ContainerdError
 */
export async function deleteLeasesOfLostPulls(address: string, signal: AbortSignal): Promise<number> {
  const anywhere = new ContainerdClient({ address, namespace: 'default' });
  let deleted = 0;
  try {
    const { namespaces } = await anywhere.unary(NamespacesService.list, { filter: '' }, signal);
    for (const { name } of namespaces) {
      const client = new ContainerdClient({ address, namespace: name });
      try {
        deleted += await deleteLeftLeases(client, PULL_PURPOSE, signal);
      } finally {
        client.close();
      }
    }
  } finally {
    anywhere.close();
  }
  return deleted;
}
