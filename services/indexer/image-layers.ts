import { isDigest, type Digest } from '#shared/digest/digest.ts';
import { type Descriptor, type ImageManifest, MEDIA_TYPES } from '#shared/registry/manifest.ts';
import { parsePlatform, choosePlatform } from '#shared/registry/platform.ts';
import type { Reference } from '#shared/registry/reference.ts';
import type { RegistryClient } from '#shared/registry/registry-client.ts';

export interface ImageLayer extends Descriptor {
  /** As the image's configuration has it; undefined where that says nothing sensible. */
  readonly diffId: Digest | undefined;
}

/** One platform's image. */
export interface PlatformImage {
  readonly descriptor: Descriptor;
  readonly layers: readonly ImageLayer[];
}

export interface ResolvedImage {
  /** What the name stands for now: an index, or the one manifest. */
  readonly digest: Digest;
  /** Empty when it is no container image (a signature, a chart, one of our own artifacts), or has none of the platforms. */
  readonly images: readonly PlatformImage[];
}

/** Manifests that are fetched of one index. */
const MAX_PLATFORMS = 64;
const INDEX_DEPTH = 2;

/**
 * Asks the registry what a name stands for now. `platforms`: `os/arch[/variant]`, or `all`.
 *
 * @throws RegistryError
 */
export async function resolveImage(
  client: Pick<RegistryClient, 'manifest' | 'blob'>,
  reference: Reference,
  platforms: readonly string[],
  signal: AbortSignal,
): Promise<ResolvedImage> {
  const top = await client.manifest(reference, signal);
  const images = new Map<Digest, PlatformImage>();
  const visit = async (fetched: typeof top, depth: number): Promise<void> => {
    const { parsed, descriptor } = fetched;
    if (parsed.kind === 'image') {
      if (!isContainerImage(parsed)) return;
      const diffIds = diffIdsOf(await client.blob(reference.repository, parsed.config, signal), parsed.layers.length);
      const layers = parsed.layers.map((layer, i) => ({ ...layer, diffId: diffIds[i] }));
      images.set(descriptor.digest, { descriptor, layers });
      return;
    }
    if (depth >= INDEX_DEPTH) return;
    for (const entry of chosen(parsed.manifests, platforms)) {
      if (images.size >= MAX_PLATFORMS) return;
      await visit(await client.manifest({ ...reference, tag: undefined, digest: entry.digest }, signal), depth + 1);
    }
  };
  await visit(top, 0);
  return { digest: top.descriptor.digest, images: [...images.values()] };
}

function chosen(manifests: readonly Descriptor[], platforms: readonly string[]): readonly Descriptor[] {
  const images = manifests.filter((entry) => entry.artifactType === undefined && entry.platform?.os !== 'unknown');
  if (platforms.includes('all') || images.every((entry) => entry.platform === undefined)) return images;
  return platforms.flatMap((platform) => choosePlatform(images, parsePlatform(platform)) ?? []);
}

function isContainerImage(manifest: ImageManifest): boolean {
  if (manifest.artifactType !== undefined || manifest.subject !== undefined) return false;
  return manifest.config.mediaType === MEDIA_TYPES.ociConfig || manifest.config.mediaType === MEDIA_TYPES.dockerConfig;
}

/** Empty where the configuration does not fit the manifest: whoever runs the image says so; its layers are what they are. */
function diffIdsOf(config: Uint8Array, layers: number): readonly Digest[] {
  try {
    const { rootfs } = JSON.parse(Buffer.from(config).toString('utf8')) as { rootfs?: { diff_ids?: unknown } };
    const ids = rootfs?.diff_ids;
    return Array.isArray(ids) && ids.length === layers && ids.every(isDigest) ? ids : [];
  } catch {
    return [];
  }
}
