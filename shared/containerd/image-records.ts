import { z } from 'zod';
import { parseDigest, sha256, type Digest } from '#shared/digest/digest.ts';
import type { ContainerdClient } from './containerd-client.ts';
import { ContainerdError } from './containerd-error.ts';
import type { ContentStore } from './content-store.ts';
import { ImagesService, type Image } from './gen/images.ts';
import {
  isIndexType,
  parseManifest,
  type Descriptor,
  type ImageManifest,
  type Platform,
} from '../registry/manifest.ts';
import { choosePlatform } from '../registry/platform.ts';

/** What an image's configuration says of how to run it; sizes and history are not ours to read. */
export interface ImageConfig {
  readonly user: string;
  readonly env: readonly string[];
  readonly entrypoint: readonly string[];
  readonly cmd: readonly string[];
  readonly workingDir: string;
  readonly stopSignal: string;
  readonly diffIds: readonly Digest[];
  /** Where it says so. */
  readonly platform: Platform | undefined;
}

const nullable = z.array(z.string()).nullish();
const configSchema = z.object({
  os: z.string().nullish(),
  architecture: z.string().nullish(),
  variant: z.string().nullish(),
  config: z
    .object({
      User: z.string().nullish(),
      Env: nullable,
      Entrypoint: nullable,
      Cmd: nullable,
      WorkingDir: z.string().nullish(),
      StopSignal: z.string().nullish(),
    })
    .nullish(),
  rootfs: z.object({ diff_ids: nullable }).nullish(),
});

/** @throws Error that names `what` when it is no image configuration. */
export function parseImageConfig(bytes: Uint8Array, what: string): ImageConfig {
  let parsed: z.infer<typeof configSchema>;
  try {
    parsed = configSchema.parse(JSON.parse(Buffer.from(bytes).toString('utf8')));
  } catch (cause) {
    throw new Error(`Cannot read image configuration of ${what}: it is not one`, { cause });
  }
  const { config, os, architecture, variant } = parsed;
  return {
    user: config?.User ?? '',
    env: config?.Env ?? [],
    entrypoint: config?.Entrypoint ?? [],
    cmd: config?.Cmd ?? [],
    workingDir: config?.WorkingDir || '/',
    stopSignal: config?.StopSignal ?? '',
    diffIds: (parsed.rootfs?.diff_ids ?? []).map((id) => parseDigest(id, `a diff ID of ${what}`)),
    platform: os && architecture ? { os, architecture, variant: variant ?? undefined } : undefined,
  };
}

/** Names of the snapshots of an image's layers, bottom first (OCI image specification, ChainID). */
export function chainIds(diffIds: readonly Digest[]): readonly Digest[] {
  const chain: Digest[] = [];
  let previous: Digest | undefined;
  for (const diffId of diffIds) {
    previous = previous === undefined ? diffId : sha256(Buffer.from(`${previous} ${diffId}`));
    chain.push(previous);
  }
  return chain;
}

export interface StoredImage {
  readonly name: string;
  readonly target: Digest;
  readonly manifest: ImageManifest;
  readonly manifestDigest: Digest;
  readonly config: ImageConfig;
}

/** containerd's image records of one namespace. */
export class ImageRecords {
  readonly #client: ContainerdClient;
  readonly #content: ContentStore;

  constructor(client: ContainerdClient, content: ContentStore) {
    this.#client = client;
    this.#content = content;
  }

  async find(name: string, signal: AbortSignal): Promise<Image | undefined> {
    try {
      return (await this.#client.unary(ImagesService.get, { name }, signal)).image;
    } catch (error) {
      if (error instanceof ContainerdError && error.code === 'not-found') return undefined;
      throw error;
    }
  }

  async list(signal: AbortSignal): Promise<readonly Image[]> {
    return (await this.#client.unary(ImagesService.list, { filters: [] }, signal)).images;
  }

  /** Creates the record or points it to another target. Labels given are set, others stay. */
  async put(
    name: string,
    target: Pick<Descriptor, 'digest' | 'size' | 'mediaType'>,
    labels: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ): Promise<void> {
    const image: Image = {
      name,
      labels: { ...labels },
      target: { mediaType: target.mediaType, digest: target.digest, size: target.size, annotations: {} },
      createdAt: undefined,
      updatedAt: undefined,
    };
    try {
      await this.#client.unary(ImagesService.create, { image, sourceDateEpoch: undefined }, signal);
    } catch (error) {
      if (!(error instanceof ContainerdError && error.code === 'already-exists')) throw error;
      const updateMask = ['target', ...Object.keys(labels).map((key) => `labels.${key}`)];
      await this.#client.unary(ImagesService.update, { image, updateMask, sourceDateEpoch: undefined }, signal);
    }
  }

  async remove(name: string, signal: AbortSignal): Promise<void> {
    try {
      await this.#client.unary(ImagesService.delete, { name, sync: true, target: undefined }, signal);
    } catch (error) {
      if (!(error instanceof ContainerdError && error.code === 'not-found')) throw error;
    }
  }

  /** Manifest and configuration out of the content store. @throws Error naming what is missing. */
  async load(name: string, platform: Platform, signal: AbortSignal): Promise<StoredImage> {
    const image = await this.find(name, signal);
    if (image?.target === undefined) {
      throw new Error(`Cannot find image ${name} in containerd's namespace ${this.#client.namespace}; pull it first`);
    }
    const target = parseDigest(image.target.digest, `the target of image ${name}`);
    let digest = target;
    let manifest = parseManifest(
      await this.#content.read(digest, signal),
      image.target.mediaType,
      `${name} (${digest})`,
    );
    if (manifest.kind === 'index' || isIndexType(image.target.mediaType)) {
      const chosen = manifest.kind === 'index' ? choosePlatform(manifest.manifests, platform) : undefined;
      if (chosen === undefined) throw new Error(`Cannot use image ${name}: nothing in it runs on this platform`);
      digest = chosen.digest;
      manifest = parseManifest(await this.#content.read(digest, signal), chosen.mediaType, `${name} (${digest})`);
    }
    if (manifest.kind !== 'image') throw new Error(`Cannot use image ${name}: its index points to another index`);
    const config = parseImageConfig(await this.#content.read(manifest.config.digest, signal), name);
    return { name, target, manifest, manifestDigest: digest, config };
  }
}
