import assert from 'node:assert/strict';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { suite, test } from 'node:test';
import { gunzipSync, gzipSync, zstdCompressSync } from 'node:zlib';
import { convertImage, type ConvertOptions } from '#shared/convert/convert-image.ts';
import { sha256, type Digest } from '#shared/digest/digest.ts';
import { type Descriptor, type ImageManifest, MEDIA_TYPES } from '#shared/registry/manifest.ts';
import { hostPlatform, parsePlatform } from '#shared/registry/platform.ts';
import { parseReference } from '#shared/registry/reference.ts';
import { RegistryClient } from '#shared/registry/registry-client.ts';
import { TestContainerd } from '#test/harness/containerd.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { runTool } from '#test/images/tool.ts';

const TOC_DIGEST = 'containerd.io/snapshot/stargz/toc.digest';
const signal = AbortSignal.timeout(120_000);

/** The sha256 of a layer's tar, as `diff_ids` want it. */
async function diffIdOf(client: RegistryClient, repository: string, layer: Descriptor): Promise<Digest> {
  const blob = await client.blob(repository, layer, signal);
  if (layer.mediaType.endsWith('+gzip')) return sha256(gunzipSync(blob));
  return sha256(await zstdCat(blob));
}

/** Node's decoder stops after the first frame: the real program is the judge. */
async function zstdCat(blob: Buffer): Promise<Buffer> {
  await using folder = await TempFolder.create();
  await writeFile(folder.join('in'), blob);
  await runTool('zstd', ['-d', '-q', '-f', folder.join('in'), '-o', folder.join('out')], signal);
  return await readFile(folder.join('out'));
}

class SourceImage {
  readonly client: RegistryClient;
  readonly repository: string;

  constructor(client: RegistryClient, repository: string) {
    this.client = client;
    this.repository = repository;
  }

  async blob(bytes: Buffer, mediaType: string): Promise<Descriptor> {
    const descriptor = { mediaType, digest: sha256(bytes), size: bytes.length };
    async function* open(): AsyncGenerator<Buffer> {
      yield bytes;
    }
    await this.client.uploadBlob(this.repository, descriptor, open, signal);
    return descriptor;
  }

  async manifest(platform: string, layers: readonly Descriptor[], tars: readonly Buffer[]): Promise<Descriptor> {
    const { os, architecture } = parsePlatform(platform);
    const config = {
      os,
      architecture,
      config: { Cmd: ['/hello'], Labels: { kept: 'yes' } },
      rootfs: { type: 'layers', diff_ids: tars.map((tar) => sha256(tar)) },
      history: tars.map((_, i) => ({ created_by: `step ${i}` })),
    };
    const document = {
      schemaVersion: 2,
      mediaType: MEDIA_TYPES.ociManifest,
      config: await this.blob(Buffer.from(JSON.stringify(config)), MEDIA_TYPES.ociConfig),
      layers,
      annotations: { 'org.example.kept': 'yes' },
    };
    const bytes = Buffer.from(JSON.stringify(document));
    const put = await this.client.putManifest(this.repository, sha256(bytes), bytes, document.mediaType, signal);
    return { ...put, platform: { os, architecture } };
  }
}

async function makeTar(folder: string, name: string, bytes: number): Promise<Buffer> {
  const root = `${folder}/${name}`;
  await mkdir(`${root}/${name}.d`, { recursive: true });
  await writeFile(`${root}/${name}.d/large`, Buffer.alloc(bytes, `${name} large `));
  await writeFile(`${root}/${name}.d/small`, `${name} small`);
  await runTool('tar', ['-C', root, '-cf', `${root}.tar`, '.'], signal);
  return await readFile(`${root}.tar`);
}

suite('convert', () => {
  test('an image of two platforms becomes zstd:chunked, and eStargz that ctr-remote accepts; converting again finds it all', async () => {
    await using folder = await TempFolder.create('cv');
    await using registry = await TestRegistry.start({ folder: folder.path }, signal);
    const client = new RegistryClient();
    try {
      const repository = `${registry.host}/source`;
      const source = new SourceImage(client, repository);
      const [base, app, arm] = await Promise.all([
        makeTar(folder.path, 'base', 5_000_000),
        makeTar(folder.path, 'app', 100_000),
        makeTar(folder.path, 'arm', 1000),
      ]);
      const shared = await source.blob(gzipSync(base), MEDIA_TYPES.dockerLayerGzip);
      const zstd = await source.blob(zstdCompressSync(app), MEDIA_TYPES.ociLayerZstd);
      const plain = await source.blob(arm, MEDIA_TYPES.ociLayerTar);
      const amd64 = await source.manifest('linux/amd64', [shared, zstd], [base, app]);
      const arm64 = await source.manifest('linux/arm64', [shared, plain], [base, arm]);
      const attestation = { ...amd64, platform: { os: 'unknown', architecture: 'unknown' } };
      const index = { schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests: [amd64, arm64, attestation] };
      await client.putManifest(repository, 'v1', Buffer.from(JSON.stringify(index)), MEDIA_TYPES.ociIndex, signal);
      const options: ConvertOptions = {
        source: parseReference(`${repository}:v1`),
        target: parseReference(`${registry.host}/target:esgz`),
        client,
        format: 'estargz',
        platforms: 'all',
        spoolFolder: folder.path,
      };

      const first = await convertImage(options, signal);
      assert.deepEqual(
        first.images.map((image) => [image.platform, image.layers.map((layer) => layer.action)]),
        [
          ['linux/amd64', ['converted', 'converted']],
          ['linux/arm64', ['converted', 'converted']],
        ],
      );
      assert.equal(first.images[0]?.layers[0]?.target, first.images[1]?.layers[0]?.target);
      const target = await client.manifest(options.target, signal);
      assert.equal(target.parsed.kind, 'index');
      for (const platform of ['linux/amd64', 'linux/arm64']) {
        const image = await client.platformManifest(options.target, parsePlatform(platform), signal);
        await checkImage(client, options.target.repository, image.parsed);
      }

      const again = await convertImage(options, signal);
      assert.equal(again.descriptor.digest, first.descriptor.digest);
      assert.ok(again.images.every((image) => image.layers.every((layer) => layer.action === 'found')));

      const copy = { ...options, source: options.target, target: parseReference(`${registry.host}/copy:one`) };
      const one = await convertImage({ ...copy, platforms: [hostPlatform()] }, signal);
      assert.equal(one.descriptor.mediaType, MEDIA_TYPES.ociManifest);
      assert.deepEqual(
        one.images[0]?.layers.map((layer) => layer.action),
        ['kept', 'kept'],
      );
      const other = hostPlatform().architecture === 'arm64' ? 'linux/amd64' : 'linux/arm64';
      const none = convertImage({ ...copy, source: copy.target, platforms: [parsePlatform(other)] }, signal);
      await assert.rejects(none, { name: 'ConvertError', code: 'nothing-to-convert' });

      const chunked: ConvertOptions = {
        ...options,
        format: 'zstd-chunked',
        target: parseReference(`${registry.host}/target:zstd`),
      };
      const third = await convertImage(chunked, signal);
      assert.ok(third.images.every((image) => image.layers.every((layer) => layer.action === 'converted')));
      const zstdImage = await client.platformManifest(chunked.target, parsePlatform('linux/arm64'), signal);
      await checkImage(client, chunked.target.repository, zstdImage.parsed);

      await using containerd = await TestContainerd.start({ folder: folder.join('c') }, signal);
      const reference = registry.reference('copy', 'one');
      await containerd.pull(reference, 'overlayfs', signal);
      const image = await client.platformManifest(copy.target, hostPlatform(), signal);
      for (const layer of image.parsed.layers) {
        const told = await containerd.ctrRemote(['images', 'get-toc-digest', layer.digest], signal);
        assert.equal(told.trim(), layer.annotations?.[TOC_DIGEST]);
      }
    } finally {
      await client.close();
    }
  });
});

/** Diff IDs are those of the blobs, and what the image said beside its layers is still there. */
async function checkImage(client: RegistryClient, repository: string, manifest: ImageManifest): Promise<void> {
  assert.equal(manifest.annotations['org.example.kept'], 'yes');
  const config = JSON.parse((await client.blob(repository, manifest.config, signal)).toString()) as {
    config: unknown;
    rootfs: { diff_ids: readonly string[] };
    history: readonly unknown[];
  };
  assert.deepEqual(config.config, { Cmd: ['/hello'], Labels: { kept: 'yes' } });
  assert.deepEqual(config.history, [{ created_by: 'step 0' }, { created_by: 'step 1' }]);
  for (const [i, layer] of manifest.layers.entries()) {
    assert.equal(await diffIdOf(client, repository, layer), config.rootfs.diff_ids[i]);
  }
}
