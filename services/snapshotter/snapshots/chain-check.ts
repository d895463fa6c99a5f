import { isDigest, sha256, type Digest } from '#shared/digest/digest.ts';
import { ImageReferenceError, parseReference } from '#shared/registry/reference.ts';
import { type LayerRequest, NotLazyError } from './layer-provider.ts';
import { remoteRequest, TARGET_LABEL, type RemoteRequest } from './remote-labels.ts';
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

/** @throws NotLazyError `refused` when the layer that was provided is not the one that its snapshot is to stand for */
export function requireOwnTar(
  { target, layer }: RemoteRequest,
  parent: Pick<Snapshot, 'name' | 'labels'> | undefined,
  diffId: Digest | undefined,
): void {
  if (diffId === undefined || !contradictsChain(target, parent, diffId)) return;
  throw new NotLazyError(
    'refused',
    `Refused layer ${layer.layer} of ${layer.imageReference}: its tar has the digest ${diffId}, the configuration of its image names another`,
  );
}

/**
 * Whether a committed snapshot may hold something else than what is asked for under its chain ID: the tar of its layer is another, or nobody
 * has checked it, and it was made of another blob, for an image of another repository. Who may push to the same repository could replace the
 * image itself.
 *
 * @param parent what the snapshot stands on
 * @param tarOf the digest of a layer's tar, where it is known
 */
export function isContested(
  snapshot: Pick<Snapshot, 'layer' | 'labels'>,
  parent: Pick<Snapshot, 'name' | 'labels'> | undefined,
  request: Pick<LayerRequest, 'layer' | 'imageReference'>,
  tarOf: (layer: Digest) => Digest | undefined,
): boolean {
  const { layer, labels } = snapshot;
  // Without a layer it was unpacked by containerd, which checks.
  if (layer === undefined) return false;
  const tar = tarOf(layer);
  if (tar !== undefined) return contradictsChain(labels[TARGET_LABEL] ?? '', parent, tar);
  if (layer === request.layer) return false;
  const origin = repositoryOf(remoteRequest(labels)?.layer.imageReference ?? '');
  return origin === undefined || origin !== repositoryOf(request.imageReference);
}

function repositoryOf(reference: string): string | undefined {
  try {
    return parseReference(reference).repository;
  } catch (error) {
    if (error instanceof ImageReferenceError) return undefined;
    throw error;
  }
}
