import { isDigest, sha256, type Digest } from '#shared/digest/digest.ts';
import { TARGET_LABEL } from './remote-labels.ts';
import type { Snapshot } from './snapshot.ts';

/** containerd's names of snapshots end in the key that the client gave: `namespace/number/key`. Ours may have `@parent` behind it. */
const CHAIN_IN_NAME = /(?:^|\/)(sha256:[0-9a-f]{64})(?:@|$)/;

/**
 * Whether `target`, the chain ID under which a snapshot is to be found, is not that of a layer whose tar has the digest `diffId` on
 * top of `parent`. A snapshot is shared by its chain ID among all images: one whose image names another tar than it brings would
 * change the others. False also where it cannot be told: for keys that are no chain IDs.
 */
export function contradictsChain(
  target: string,
  parent: Pick<Snapshot, 'name' | 'labels'> | undefined,
  diffId: Digest,
): boolean {
  if (!isDigest(target)) return false;
  if (parent === undefined) return target !== diffId;
  const below = parent.labels[TARGET_LABEL] ?? CHAIN_IN_NAME.exec(parent.name)?.[1];
  return isDigest(below) && target !== sha256(Buffer.from(`${below} ${diffId}`));
}
