import { createWriteStream } from 'node:fs';
import { mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { TestContainerd } from '#test/harness/containerd.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { sha256, type Digest } from '#shared/digest/digest.ts';
import { MANIFEST_TYPE, OciLayout, type Manifest } from './oci-layout.ts';

/** Lazy variants made by `ctr-remote`, the independent producer. */
export const REMOTE_VARIANTS = ['ctr-remote-estargz', 'ctr-remote-optimized', 'ctr-remote-zstd-chunked'] as const;
export type RemoteVariant = (typeof REMOTE_VARIANTS)[number];

/** How long `ctr-remote image optimize` watches the image start. */
const WATCH_SECONDS = 2;

/** Converts `source` with `ctr-remote` into a new layout at `folder`. Optimising starts the container. */
export async function convertByCtrRemote(
  source: OciLayout,
  variant: RemoteVariant,
  folder: string,
  signal: AbortSignal,
): Promise<OciLayout> {
  await using work = await TempFolder.create('cr');
  await using registry = await TestRegistry.start({ folder: work.path }, signal);
  await using containerd = await TestContainerd.start({ folder: work.join('c') }, signal);
  const original = await registry.push(source, 'image', 'original', signal);
  const target = registry.reference('image', 'converted');
  await containerd.pull(original, 'overlayfs', signal);
  const how: Readonly<Record<RemoteVariant, readonly string[]>> = {
    'ctr-remote-estargz': ['convert', '--oci', '--estargz'],
    'ctr-remote-zstd-chunked': ['convert', '--oci', '--zstdchunked'],
    'ctr-remote-optimized': [
      'optimize',
      '--oci',
      '--net-host',
      '--estargz-compression-level=6',
      `--period=${WATCH_SECONDS}`,
    ],
  };
  await containerd.ctrRemote(['images', ...how[variant], original, target], signal);
  await containerd.ctr(['images', 'push', '--plain-http', target], signal);
  return await saveImage(registry, 'image', 'converted', folder, signal);
}

/** Copies a single-platform image out of a registry into a layout. */
export async function saveImage(
  registry: TestRegistry,
  name: string,
  tag: string,
  folder: string,
  signal: AbortSignal,
): Promise<OciLayout> {
  const temporary = `${folder}.${process.pid}.tmp`;
  await rm(temporary, { recursive: true, force: true });
  await mkdir(`${temporary}/blobs/sha256`, { recursive: true });
  const layout = new OciLayout(temporary);
  const base = `http://${registry.host}/v2/${name}`;
  const answer = await fetch(`${base}/manifests/${tag}`, { headers: { accept: MANIFEST_TYPE }, signal });
  const bytes = Buffer.from(await answer.arrayBuffer());
  const manifest = JSON.parse(bytes.toString()) as Manifest;
  if (!answer.ok || manifest.mediaType !== MANIFEST_TYPE) {
    throw new Error(
      `Cannot save ${name}:${tag}: the registry answered ${answer.status} ${bytes.toString().slice(0, 200)}`,
    );
  }
  for (const { digest } of [manifest.config, ...manifest.layers]) {
    const blob = await fetch(`${base}/blobs/${digest}`, { signal });
    if (!blob.ok || blob.body === null) throw new Error(`Cannot save ${name}:${tag}: ${digest}: ${blob.status}`);
    await pipeline(Readable.fromWeb(blob.body), createWriteStream(layout.blobPath(digest)), { signal });
  }
  const digest: Digest = sha256(bytes);
  await writeFile(layout.blobPath(digest), bytes);
  await writeFile(`${temporary}/oci-layout`, '{"imageLayoutVersion":"1.0.0"}');
  const manifests = [{ mediaType: MANIFEST_TYPE, digest, size: bytes.length }];
  await writeFile(`${temporary}/index.json`, JSON.stringify({ schemaVersion: 2, manifests }));
  await rm(folder, { recursive: true, force: true });
  await rename(temporary, folder);
  return new OciLayout(folder);
}
