import { z } from 'zod';
import { isDigest, type Digest } from '#shared/digest/digest.ts';
import { TOC_DIGEST_ANNOTATION } from '#shared/formats/toc/toc-tail.ts';
import { parseReference } from '#shared/registry/reference.ts';
import { NotLazyError, type LayerRequest } from '../snapshots/layer-provider.ts';
import type { LayerOrigin } from './span-source.ts';

const digest = z.custom<Digest>(isDigest, 'a sha256 digest');
const size = z.int().nonnegative();

const request = z.object({
  imageReference: z.string().max(4096),
  layer: digest,
  sizeBytes: size.optional(),
  mediaType: z.string().max(256).optional(),
  annotations: z.record(z.string().max(4096), z.string().max(65_536)),
  manifest: digest.optional(),
});

/**
 * `layer.json`: what a restart must know of a layer without opening its map. It names the digests of the files beside it, so
 * that after an unclean boot each of them is checked before it is believed.
 */
const schema = z.object({
  version: z.literal(1),
  layer: digest,
  blobSize: size,
  diffId: digest.optional(),
  /** Digest of the TOC that it was made by, where that lies outside of the blob: each image that names the layer may bring another. */
  externalToc: digest.optional(),
  format: z.string().max(32),
  metadataSize: size,
  imageSize: size,
  spanCount: size,
  prioritySpans: size,
  inodes: size,
  /** False where spans cannot be had from the blob by themselves (zstd in one frame). */
  seekable: z.boolean(),
  /** Base64 of the paths that exist only because something lies below them. */
  impliedDirectories: z.array(z.string()),
  /** Owner of the root, where the layer has an entry for it. */
  rootOwner: z.object({ uid: size, gid: size }).optional(),
  metadataDigest: digest,
  mapDigest: digest,
  /** Absent where the index is not kept, since the blob's own TOC says the same. */
  indexDigest: digest.optional(),
  /** How the layer was asked for: where its bytes can be had, and how to make it anew. The latest first. */
  requests: z.array(request),
});

export type LayerRecord = z.infer<typeof schema>;

/** Whether no other node can use the layer's spans: a SOCI index cuts others than an index of ours, and verifies no payload. */
export function isOfNodeOnly(record: Pick<LayerRecord, 'format'>): boolean {
  return record.format === 'soci';
}

/**
 * A table of contents outside of a blob is vouched for by the image that brings it, for this image: another image gets the layer only
 * with the same table, or where the table was checked against the tar.
 *
 * @throws NotLazyError `refused`
 */
export function requireSameToc(
  { diffId, externalToc }: Pick<LayerRecord, 'diffId' | 'externalToc'>,
  { layer, imageReference, annotations }: LayerRequest,
): void {
  if (externalToc === undefined || diffId !== undefined) return;
  const asked = annotations[TOC_DIGEST_ANNOTATION];
  if (asked === externalToc) return;
  throw new NotLazyError(
    'refused',
    `Refused layer ${layer} of ${imageReference}: this node has it by the table of contents ${externalToc} of another image, and this image ${asked === undefined ? 'vouches for none' : `vouches for ${asked}`}`,
  );
}

/** Repositories remembered for a layer: enough to outlive one that goes, bounded because every image may name another. */
const MAX_REQUESTS = 8;

export class LayerRecordError extends Error {
  override readonly name = 'LayerRecordError';
  readonly code = 'damaged';
}

/** @throws LayerRecordError when the text is no record of `layer` (torn by a power loss, or of another version). */
export function parseLayerRecord(text: string, layer: Digest): LayerRecord {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new LayerRecordError(`Cannot use the record of ${layer}: it is not JSON`, { cause });
  }
  const parsed = schema.safeParse(json);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new LayerRecordError(`Cannot use the record of ${layer}: ${issue?.path.join('.')}: ${issue?.message}`);
  }
  if (parsed.data.layer !== layer)
    throw new LayerRecordError(`Cannot use the record of ${layer}: it is of another layer`);
  return parsed.data;
}

/** The record with `request` first, and its requests bounded. The same object when nothing changes. */
export function withRequest(record: LayerRecord, request: LayerRequest): LayerRecord {
  const first = record.requests[0];
  if (first !== undefined && sameRequest(first, request)) return record;
  const others = record.requests.filter((known) => known.imageReference !== request.imageReference);
  const plain: LayerRecord['requests'][number] = {
    imageReference: request.imageReference,
    layer: request.layer,
    sizeBytes: request.sizeBytes,
    mediaType: request.mediaType,
    annotations: { ...request.annotations },
    manifest: request.manifest,
  };
  return { ...record, requests: [plain, ...others].slice(0, MAX_REQUESTS) };
}

function sameRequest(a: LayerRecord['requests'][number], b: LayerRequest): boolean {
  return a.imageReference === b.imageReference && a.manifest === b.manifest && a.sizeBytes === b.sizeBytes;
}

/** The request in the seam's form (zod's optional is "absent or undefined"; the seam's is "undefined"). */
export function requestOf(stored: LayerRecord['requests'][number]): LayerRequest {
  return {
    imageReference: stored.imageReference,
    layer: stored.layer,
    sizeBytes: stored.sizeBytes,
    mediaType: stored.mediaType,
    annotations: stored.annotations,
    manifest: stored.manifest,
  };
}

/** @throws ImageReferenceError */
export function originOf(
  request: { readonly imageReference: string; readonly layer: Digest; readonly mediaType?: string | undefined },
  sizeBytes: number,
): LayerOrigin {
  const { repository } = parseReference(request.imageReference);
  return { repository, layer: request.layer, sizeBytes, mediaType: request.mediaType ?? '' };
}
