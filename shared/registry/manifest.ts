import { z } from 'zod';
import { isDigest, type Digest } from '#shared/digest/digest.ts';

export const MEDIA_TYPES = {
  ociManifest: 'application/vnd.oci.image.manifest.v1+json',
  ociIndex: 'application/vnd.oci.image.index.v1+json',
  ociConfig: 'application/vnd.oci.image.config.v1+json',
  ociEmpty: 'application/vnd.oci.empty.v1+json',
  ociLayerTar: 'application/vnd.oci.image.layer.v1.tar',
  ociLayerGzip: 'application/vnd.oci.image.layer.v1.tar+gzip',
  ociLayerZstd: 'application/vnd.oci.image.layer.v1.tar+zstd',
  dockerManifest: 'application/vnd.docker.distribution.manifest.v2+json',
  dockerList: 'application/vnd.docker.distribution.manifest.list.v2+json',
  dockerConfig: 'application/vnd.docker.container.image.v1+json',
  dockerLayerGzip: 'application/vnd.docker.image.rootfs.diff.tar.gzip',
} as const;

export const MANIFEST_LIMITS = {
  /** Bytes of a manifest or index; what the distribution specification asks registries to accept. */
  bytes: 4 * 1024 * 1024,
  /** Layers of an image: overlayfs itself allows about 500. */
  layers: 512,
  /** Manifests of an index. */
  manifests: 4096,
} as const;

export interface Platform {
  readonly os: string;
  readonly architecture: string;
  readonly variant?: string | undefined;
  readonly 'os.version'?: string | undefined;
  readonly 'os.features'?: readonly string[] | undefined;
}

export interface Descriptor {
  readonly mediaType: string;
  readonly digest: Digest;
  readonly size: number;
  readonly annotations?: Readonly<Record<string, string>> | undefined;
  readonly platform?: Platform | undefined;
  readonly artifactType?: string | undefined;
  readonly urls?: readonly string[] | undefined;
  readonly data?: string | undefined;
}

export interface ImageManifest {
  readonly kind: 'image';
  readonly mediaType: string;
  readonly config: Descriptor;
  readonly layers: readonly Descriptor[];
  readonly annotations: Readonly<Record<string, string>>;
  readonly subject: Descriptor | undefined;
  readonly artifactType: string | undefined;
}

export interface ImageIndex {
  readonly kind: 'index';
  readonly mediaType: string;
  readonly manifests: readonly Descriptor[];
  readonly annotations: Readonly<Record<string, string>>;
  readonly subject: Descriptor | undefined;
  readonly artifactType: string | undefined;
}

export type Manifest = ImageManifest | ImageIndex;

export class ManifestError extends Error {
  override readonly name = 'ManifestError';
  readonly code = 'malformed';
}

const annotations = z.record(z.string(), z.string());
const platform = z.object({
  os: z.string(),
  architecture: z.string(),
  variant: z.string().optional(),
  'os.version': z.string().optional(),
  'os.features': z.array(z.string()).optional(),
});
const descriptor = z.object({
  mediaType: z.string(),
  digest: z.custom<Digest>(isDigest, 'not "sha256:" and 64 hex digits'),
  size: z.int().nonnegative(),
  annotations: annotations.nullish().transform((value) => value ?? undefined),
  platform: platform.optional(),
  artifactType: z.string().optional(),
  urls: z.array(z.string()).optional(),
  data: z.string().optional(),
});
const both = {
  schemaVersion: z.literal(2),
  mediaType: z.string().optional(),
  annotations: annotations.nullish().transform((value) => value ?? {}),
  subject: descriptor.optional(),
  artifactType: z.string().optional(),
};
const image = z.object({ ...both, config: descriptor, layers: z.array(descriptor).max(MANIFEST_LIMITS.layers) });
const index = z.object({
  ...both,
  manifests: z
    .array(descriptor)
    .max(MANIFEST_LIMITS.manifests)
    .nullable()
    .transform((value) => value ?? []),
});

export function isIndexType(mediaType: string): boolean {
  return mediaType === MEDIA_TYPES.ociIndex || mediaType === MEDIA_TYPES.dockerList;
}

export function isManifestType(mediaType: string): boolean {
  return mediaType === MEDIA_TYPES.ociManifest || mediaType === MEDIA_TYPES.dockerManifest || isIndexType(mediaType);
}

/**
 * Parses a manifest or index. The document's own `mediaType` counts before `mediaType`, the one of the answer: that is
 * what its digest covers.
 *
 * @throws ManifestError; `what` names it in the message.
 */
export function parseManifest(bytes: Uint8Array, mediaType: string, what: string): Manifest {
  let json: Record<string, unknown>;
  try {
    json = documentOf(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8'));
  } catch (cause) {
    throw new ManifestError(`Cannot read ${what}: it is not a JSON object`, { cause });
  }
  if ('manifests' in json && 'layers' in json) {
    throw new ManifestError(`Cannot read ${what}: it has both "manifests" and "layers" (ambiguous on purpose?)`);
  }
  if ('manifests' in json) {
    const parsed = index.safeParse(json);
    if (!parsed.success) throw new ManifestError(`Cannot read index ${what}: ${describe(parsed.error)}`);
    const { schemaVersion: _, ...rest } = parsed.data;
    return {
      kind: 'index',
      subject: rest.subject,
      artifactType: rest.artifactType,
      annotations: rest.annotations,
      manifests: rest.manifests,
      mediaType: rest.mediaType ?? (isIndexType(mediaType) ? mediaType : MEDIA_TYPES.ociIndex),
    };
  }
  const parsed = image.safeParse(json);
  if (!parsed.success) {
    const old = json['schemaVersion'] === 1;
    throw new ManifestError(
      `Cannot read manifest ${what}: ${old ? 'Docker schema 1 is not supported; push the image again' : describe(parsed.error)}`,
    );
  }
  return {
    kind: 'image',
    config: parsed.data.config,
    layers: parsed.data.layers,
    subject: parsed.data.subject,
    artifactType: parsed.data.artifactType,
    annotations: parsed.data.annotations,
    mediaType: parsed.data.mediaType ?? (isManifestType(mediaType) ? mediaType : MEDIA_TYPES.ociManifest),
  };
}

function documentOf(text: string): Record<string, unknown> {
  const json: unknown = JSON.parse(text);
  if (typeof json !== 'object' || json === null || Array.isArray(json)) throw new SyntaxError('not an object');
  return { ...json };
}

function describe(error: z.ZodError): string {
  return error.issues
    .slice(0, 3)
    .map((issue) => `${issue.path.join('.') || 'document'}: ${issue.message}`)
    .join('; ');
}
