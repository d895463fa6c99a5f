import { z } from 'zod';
import { isDigest, type Digest } from '#shared/digest/digest.ts';
import { type Descriptor, MEDIA_TYPES } from '#shared/registry/manifest.ts';
import { ConvertError } from './convert-error.ts';

/** An image's configuration: what we look at, and all the rest as it was. */
export interface ImageConfigDocument {
  readonly diffIds: readonly Digest[];
  readonly os: string;
  readonly architecture: string;
  readonly variant: string | undefined;
  readonly raw: Readonly<Record<string, unknown>>;
}

const config = z.looseObject({
  os: z.string(),
  architecture: z.string(),
  variant: z.string().optional(),
  rootfs: z.looseObject({
    type: z.literal('layers'),
    diff_ids: z.array(z.custom<Digest>(isDigest, 'not "sha256:" and 64 hex digits')),
  }),
});

/** @throws ConvertError `malformed`; `what` names the image. */
export function parseImageConfig(bytes: Buffer, layerCount: number, what: string): ImageConfigDocument {
  let json: unknown;
  try {
    json = JSON.parse(bytes.toString('utf8'));
  } catch (cause) {
    throw new ConvertError('malformed', `Cannot convert ${what}: its configuration is not JSON`, { cause });
  }
  const parsed = config.safeParse(json);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new ConvertError(
      'unsupported',
      `Cannot convert ${what}: its configuration is not that of an image (${issue?.path.join('.') ?? ''}: ${issue?.message ?? ''})`,
    );
  }
  const diffIds = parsed.data.rootfs.diff_ids;
  if (diffIds.length !== layerCount) {
    throw new ConvertError(
      'malformed',
      `Cannot convert ${what}: its manifest has ${layerCount} layers, its configuration ${diffIds.length}`,
    );
  }
  const { os, architecture, variant } = parsed.data;
  return { diffIds, os, architecture, variant, raw: { ...(json as object) } };
}

/** The configuration with other layers; the history and everything else stay. */
export function configWith(document: ImageConfigDocument, diffIds: readonly Digest[]): Buffer {
  const rootfs = { ...(document.raw['rootfs'] as object), diff_ids: diffIds };
  return Buffer.from(JSON.stringify({ ...document.raw, rootfs }));
}

/** An OCI manifest that keeps what `original` says beside its layers. A signature's or attestation's subject is left out. */
export function manifestWith(original: Buffer, configuration: Descriptor, layers: readonly Descriptor[]): Buffer {
  const { subject: _, ...kept } = JSON.parse(original.toString('utf8')) as Record<string, unknown>;
  return Buffer.from(
    JSON.stringify({ ...kept, schemaVersion: 2, mediaType: MEDIA_TYPES.ociManifest, config: configuration, layers }),
  );
}

export function indexWith(original: Buffer, manifests: readonly Descriptor[]): Buffer {
  const { subject: _, ...kept } = JSON.parse(original.toString('utf8')) as Record<string, unknown>;
  return Buffer.from(JSON.stringify({ ...kept, schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests }));
}

/** OCI's name of a Docker layer's media type; others stay. */
export function ociLayerType(mediaType: string): string {
  return mediaType === MEDIA_TYPES.dockerLayerGzip ? MEDIA_TYPES.ociLayerGzip : mediaType;
}
