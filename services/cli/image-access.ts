import type { Bus } from '#shared/bus/bus.ts';
import type { Platform } from '#shared/registry/manifest.ts';
import { hostPlatform, parsePlatform } from '#shared/registry/platform.ts';
import { parseReference, type Reference } from '#shared/registry/reference.ts';
import type { FetchedImage, RegistryClient } from '#shared/registry/registry-client.ts';
import { clusterAccess } from './cluster-access.ts';
import { registryAccess, type RegistryFlags } from './registry-access.ts';

export interface ImageFlags extends RegistryFlags {
  readonly platform?: string;
  readonly nats?: string;
}

/** An image in its registry, and the cluster that may know its layers. */
export interface ImageAccess {
  readonly client: RegistryClient;
  readonly reference: Reference;
  readonly platform: Platform;
  readonly image: FetchedImage;
  readonly bus: Bus | undefined;
}

/** Hands the image to `use`, and closes all that was opened for it. @throws RegistryError, ImageReferenceError */
export async function withImage(
  name: string,
  flags: ImageFlags,
  signal: AbortSignal,
  use: (access: ImageAccess) => Promise<void>,
): Promise<void> {
  const reference = parseReference(name);
  const platform = flags.platform === undefined ? hostPlatform() : parsePlatform(flags.platform);
  await using closing = new AsyncDisposableStack();
  const client = closing.adopt(registryAccess(flags), async (opened) => await opened.close());
  const bus = await clusterAccess(flags.nats);
  if (bus !== undefined) closing.use(bus);
  const image = await client.platformManifest(reference, platform, signal);
  await use({ client, reference, platform, image, bus });
}
