import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { hexOf, sha256, type Digest } from '#shared/digest/digest.ts';

export interface Descriptor {
  readonly mediaType: string;
  readonly digest: Digest;
  readonly size: number;
  readonly annotations?: Readonly<Record<string, string>>;
}

export interface ImageConfig {
  readonly architecture: 'amd64';
  readonly os: 'linux';
  readonly config: {
    readonly Env: readonly string[];
    readonly Cmd: readonly string[];
    readonly WorkingDir: string;
  };
  readonly rootfs: { readonly type: 'layers'; readonly diff_ids: readonly Digest[] };
  readonly history: readonly { readonly created: string; readonly created_by: string }[];
}

export interface Manifest {
  readonly schemaVersion: 2;
  readonly mediaType: string;
  readonly config: Descriptor;
  readonly layers: readonly Descriptor[];
}

/** A layer blob as a file, with all that manifest and config say of it. */
export interface LayerFile {
  readonly path: string;
  readonly mediaType: string;
  readonly digest: Digest;
  readonly size: number;
  readonly diffId: Digest;
  readonly createdBy: string;
  readonly annotations?: Readonly<Record<string, string>>;
}

export const MANIFEST_TYPE = 'application/vnd.oci.image.manifest.v1+json';
const CONFIG_TYPE = 'application/vnd.oci.image.config.v1+json';
/** Fixed, so that the same layers always make the same image. */
const CREATED = '2024-01-01T00:00:00Z';

/** One image as a folder of the OCI image layout; immutable once published. */
export class OciLayout {
  readonly folder: string;

  constructor(folder: string) {
    this.folder = folder;
  }

  blobPath(digest: Digest): string {
    return join(this.folder, 'blobs', 'sha256', hexOf(digest));
  }

  async manifest(): Promise<{ readonly bytes: Buffer; readonly digest: Digest; readonly manifest: Manifest }> {
    const index = JSON.parse(await readFile(join(this.folder, 'index.json'), 'utf8')) as { manifests: Descriptor[] };
    const descriptor = index.manifests[0];
    if (descriptor === undefined) throw new Error(`Cannot read ${this.folder}: its index names no manifest`);
    const bytes = await readFile(this.blobPath(descriptor.digest));
    return { bytes, digest: descriptor.digest, manifest: JSON.parse(bytes.toString()) as Manifest };
  }

  async config(): Promise<ImageConfig> {
    const { manifest } = await this.manifest();
    return JSON.parse(await readFile(this.blobPath(manifest.config.digest), 'utf8')) as ImageConfig;
  }

  /** Bytes of all layer blobs. */
  async layerBytes(): Promise<number> {
    return (await this.manifest()).manifest.layers.reduce((sum, layer) => sum + layer.size, 0);
  }
}

/** Makes a layout in `folder` (which must not exist) out of layer files, which are moved into it; published by rename. */
export async function writeOciLayout(
  folder: string,
  layers: readonly LayerFile[],
  image: { readonly command: readonly string[]; readonly env?: readonly string[] },
): Promise<OciLayout> {
  const temporary = `${folder}.${process.pid}.tmp`;
  await rm(temporary, { recursive: true, force: true });
  const layout = new OciLayout(temporary);
  await mkdir(join(temporary, 'blobs', 'sha256'), { recursive: true });
  for (const layer of layers) await rename(layer.path, layout.blobPath(layer.digest));
  const config: ImageConfig = {
    architecture: 'amd64',
    os: 'linux',
    config: {
      Env: ['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', ...(image.env ?? [])],
      Cmd: image.command,
      WorkingDir: '/',
    },
    rootfs: { type: 'layers', diff_ids: layers.map((layer) => layer.diffId) },
    history: layers.map((layer) => ({ created: CREATED, created_by: layer.createdBy })),
  };
  const configBlob = await writeBlob(layout, CONFIG_TYPE, config);
  const manifestBlob = await writeBlob(layout, MANIFEST_TYPE, {
    schemaVersion: 2,
    mediaType: MANIFEST_TYPE,
    config: configBlob,
    layers: layers.map(({ mediaType, digest, size, annotations }) => ({
      mediaType,
      digest,
      size,
      ...(annotations === undefined ? {} : { annotations }),
    })),
  } satisfies Manifest);
  await writeFile(join(temporary, 'oci-layout'), '{"imageLayoutVersion":"1.0.0"}');
  await writeFile(
    join(temporary, 'index.json'),
    JSON.stringify({
      schemaVersion: 2,
      manifests: [{ ...manifestBlob, annotations: { 'org.opencontainers.image.ref.name': 'latest' } }],
    }),
  );
  await rm(folder, { recursive: true, force: true });
  await rename(temporary, folder);
  return new OciLayout(folder);
}

async function writeBlob(layout: OciLayout, mediaType: string, value: unknown): Promise<Descriptor> {
  const bytes = Buffer.from(JSON.stringify(value));
  const digest = sha256(bytes);
  await writeFile(layout.blobPath(digest), bytes);
  return { mediaType, digest, size: bytes.length };
}

export async function digestOfFile(path: string): Promise<{ readonly digest: Digest; readonly size: number }> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(chunk as Buffer);
  return { digest: `sha256:${hash.digest('hex')}` as Digest, size: (await stat(path)).size };
}
