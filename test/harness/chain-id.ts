import { sha256, type Digest } from '#shared/digest/digest.ts';

/** The chain IDs of an image's layers, as OCI defines them, from the lowest up. */
export function chainIds(diffIds: readonly Digest[]): Digest[] {
  const chain: Digest[] = [];
  for (const diffId of diffIds) {
    const parent = chain.at(-1);
    chain.push(parent === undefined ? diffId : sha256(Buffer.from(`${parent} ${diffId}`)));
  }
  return chain;
}
