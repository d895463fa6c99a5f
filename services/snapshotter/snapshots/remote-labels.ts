import { isDigest, type Digest } from '#shared/digest/digest.ts';
import type { LayerRequest } from './layer-provider.ts';

/** The chain ID that a Prepare is about; its value is also what containerd then looks for with List. */
export const TARGET_LABEL = 'containerd.io/snapshot.ref';

/**
 * Labels by which clients name the layer behind a snapshot: our own, those of the established remote snapshotter's clients
 * (ctr-remote, nerdctl), and CRI's. The first group that is complete counts.
 */
const OWN_LABELS = {
  reference: 'containerd.io/snapshot/remote/kindling.reference',
  digest: 'containerd.io/snapshot/remote/kindling.digest',
  size: 'containerd.io/snapshot/remote/kindling.size',
  mediaType: 'containerd.io/snapshot/remote/kindling.media-type',
  manifest: 'containerd.io/snapshot/remote/kindling.manifest',
} as const;

const GROUPS: readonly {
  readonly reference: string;
  readonly digest: string;
  readonly size?: string;
  readonly mediaType?: string;
  readonly manifest?: string;
}[] = [
  OWN_LABELS,
  {
    reference: 'containerd.io/snapshot/remote/stargz.reference',
    digest: 'containerd.io/snapshot/remote/stargz.digest',
  },
  {
    reference: 'containerd.io/snapshot/cri.image-ref',
    digest: 'containerd.io/snapshot/cri.layer-digest',
    manifest: 'containerd.io/snapshot/cri.manifest-digest',
  },
];

const INHERITED = 'containerd.io/snapshot/';
/** Other annotations of a layer travel under this prefix when we pull ourselves. */
const OWN_ANNOTATION = 'containerd.io/snapshot/remote/kindling.annotation/';
/** Bytes of an annotation's key and value: with the prefix, the label must stay within containerd's 4096. */
const MAX_ANNOTATION_BYTES = 3900;
/** Bytes; what a registry's grammar allows with host, tag and digest. */
const MAX_REFERENCE_BYTES = 1024;

export interface RemoteRequest {
  /** Chain ID under which the snapshot is to be committed. */
  readonly target: string;
  readonly layer: LayerRequest;
}

/** What the labels of a Prepare ask for; undefined when this is no layer of an image, or nobody says where it is. */
export function remoteRequest(labels: Readonly<Record<string, string>>): RemoteRequest | undefined {
  const target = labels[TARGET_LABEL];
  if (target === undefined || target === '') return undefined;
  for (const group of GROUPS) {
    const imageReference = labels[group.reference];
    const layer = labels[group.digest];
    if (imageReference === undefined || imageReference.length > MAX_REFERENCE_BYTES || !isDigest(layer)) continue;
    return {
      target,
      layer: {
        imageReference,
        layer,
        sizeBytes: sizeOf(labelOf(labels, group.size)),
        mediaType: labelOf(labels, group.mediaType),
        manifest: digestOf(labelOf(labels, group.manifest)),
        annotations: annotationsOf(labels),
      },
    };
  }
  return undefined;
}

/** The labels that make a Prepare remote; `remoteRequest` gives the same request back. */
export function remoteLabels(target: string, request: LayerRequest): Record<string, string> {
  const labels: Record<string, string> = {
    [TARGET_LABEL]: target,
    [OWN_LABELS.reference]: request.imageReference,
    [OWN_LABELS.digest]: request.layer,
  };
  if (request.sizeBytes !== undefined) labels[OWN_LABELS.size] = String(request.sizeBytes);
  if (request.mediaType !== undefined) labels[OWN_LABELS.mediaType] = request.mediaType;
  if (request.manifest !== undefined) labels[OWN_LABELS.manifest] = request.manifest;
  for (const [key, value] of Object.entries(request.annotations)) {
    if (Buffer.byteLength(key) + Buffer.byteLength(value) > MAX_ANNOTATION_BYTES) continue;
    labels[key.startsWith(INHERITED) ? key : OWN_ANNOTATION + key] = value;
  }
  return labels;
}

function annotationsOf(labels: Readonly<Record<string, string>>): Record<string, string> {
  const own = new Set<string>(Object.values(OWN_LABELS));
  return Object.fromEntries(
    Object.entries(labels)
      .filter(([key]) => key.startsWith(INHERITED) && !own.has(key))
      .map(([key, value]) => [key.startsWith(OWN_ANNOTATION) ? key.slice(OWN_ANNOTATION.length) : key, value]),
  );
}

function labelOf(labels: Readonly<Record<string, string>>, key: string | undefined): string | undefined {
  return key === undefined ? undefined : labels[key] || undefined;
}

function sizeOf(text: string | undefined): number | undefined {
  return text !== undefined && /^\d{1,15}$/.test(text) ? Number(text) : undefined;
}

function digestOf(text: string | undefined): Digest | undefined {
  return isDigest(text) ? text : undefined;
}
