import type { Digest } from '#shared/digest/digest.ts';
import { type Descriptor, type ImageManifest, MEDIA_TYPES } from '#shared/registry/manifest.ts';
import { parsePlatform, choosePlatform } from '#shared/registry/platform.ts';
import type { Reference } from '#shared/registry/reference.ts';
import type { RegistryClient } from '#shared/registry/registry-client.ts';

/** One platform's image. */
export interface PlatformImage {
  readonly descriptor: Descriptor;
  readonly layers: readonly Descriptor[];
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
  client: Pick<RegistryClient, 'manifest'>,
  reference: Reference,
  platforms: readonly string[],
  signal: AbortSignal,
): Promise<ResolvedImage> {
  const top = await client.manifest(reference, signal);
  const images = new Map<Digest, PlatformImage>();
  const visit = async (fetched: typeof top, depth: number): Promise<void> => {
    const { parsed, descriptor } = fetched;
    if (parsed.kind === 'image') {
      if (isContainerImage(parsed)) images.set(descriptor.digest, { descriptor, layers: parsed.layers });
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
