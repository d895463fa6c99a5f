import assert from 'node:assert/strict';
import { test } from 'node:test';
import { sha256, type Digest } from '#shared/digest/digest.ts';
import { AllowedRepositories } from '#shared/registry/allowed-repositories.ts';
import { MEDIA_TYPES, parseManifest, type Descriptor } from '#shared/registry/manifest.ts';
import type { Artifact, RegistryClient } from '#shared/registry/registry-client.ts';
import type { Reference } from '#shared/registry/reference.ts';
import { INDEX_ARTIFACT_TYPE, RegistryIndexes } from './registry-indexes.ts';

const signal = new AbortController().signal;
const subject: Descriptor = { mediaType: MEDIA_TYPES.ociManifest, digest: sha256(Buffer.from('image')), size: 5 };
const layer = sha256(Buffer.from('layer'));
const index = Buffer.from('an index');

/** Keeps artifacts as a registry would, for one repository. */
class Artifacts {
  readonly #manifests: { readonly subject: Digest; readonly bytes: Buffer }[] = [];
  readonly #blobs = new Map<Digest, Buffer>();
  looks = 0;

  async putArtifact(_repository: string, artifact: Artifact): Promise<Descriptor> {
    const layers = artifact.blobs.map((blob) => {
      const digest = sha256(blob.bytes);
      this.#blobs.set(digest, Buffer.from(blob.bytes));
      return { mediaType: blob.mediaType, digest, size: blob.bytes.length, annotations: blob.annotations };
    });
    const config = { mediaType: MEDIA_TYPES.ociEmpty, digest: sha256(Buffer.from('{}')), size: 2 };
    const bytes = Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        artifactType: artifact.artifactType,
        config,
        layers,
        subject: artifact.subject,
      }),
    );
    this.#manifests.push({ subject: artifact.subject.digest, bytes });
    return { mediaType: MEDIA_TYPES.ociManifest, digest: sha256(bytes), size: bytes.length };
  }

  async referrers(_repository: string, of: Digest): Promise<Descriptor[]> {
    this.looks += 1;
    return this.#manifests
      .filter((one) => one.subject === of)
      .map(({ bytes }) => ({ mediaType: MEDIA_TYPES.ociManifest, digest: sha256(bytes), size: bytes.length }));
  }

  async manifest(reference: Reference) {
    const found = this.#manifests.find(({ bytes }) => sha256(bytes) === reference.digest);
    assert.ok(found);
    return {
      bytes: found.bytes,
      parsed: parseManifest(found.bytes, MEDIA_TYPES.ociManifest, 'it'),
      descriptor: subject,
    };
  }

  async blob(_repository: string, { digest }: Pick<Descriptor, 'digest'>): Promise<Buffer> {
    return this.#blobs.get(digest) ?? Buffer.alloc(0);
  }
}

const request = (repository: string, manifest: Digest | undefined = subject.digest) => ({
  layer,
  repository,
  manifest,
  annotations: {},
});

test('what is pushed beside an image is found again, where the repository is trusted', async () => {
  const artifacts = new Artifacts();
  const client = artifacts as unknown as RegistryClient;
  const indexes = new RegistryIndexes(client, new AllowedRepositories(['r.example/app']));
  assert.equal(await indexes.publish('r.example/app', subject, [{ layer, bytes: index }], signal), true);
  assert.equal(await indexes.publish('r.example/app', subject, [{ layer, bytes: index }], signal), false);
  artifacts.looks = 0;
  assert.deepEqual(await indexes.find(request('r.example/app'), signal), index);
  assert.deepEqual(await indexes.find(request('r.example/app'), signal), index);
  assert.equal(artifacts.looks, 1, 'all layers of an image ask once');
  assert.equal(await indexes.find(request('r.example/app', sha256(Buffer.from('other'))), signal), undefined);
  assert.equal(await indexes.find({ ...request('r.example/app'), layer: subject.digest }, signal), undefined);
});

test('a repository that is not trusted is not even asked', async () => {
  const artifacts = new Artifacts();
  const client = artifacts as unknown as RegistryClient;
  await new RegistryIndexes(client, new AllowedRepositories([])).publish(
    'r.example/evil',
    subject,
    [{ layer, bytes: index }],
    signal,
  );
  artifacts.looks = 0;
  const indexes = new RegistryIndexes(client, new AllowedRepositories(['r.example/app']));
  assert.equal(await indexes.find(request('r.example/evil'), signal), undefined);
  assert.equal(artifacts.looks, 0);
});

test('an artifact of another type or another image is passed over', async () => {
  const artifacts = new Artifacts();
  const annotations = { 'io.kindling.layer': layer };
  const blobs = [{ mediaType: INDEX_ARTIFACT_TYPE, bytes: index, annotations }];
  await artifacts.putArtifact('', { artifactType: 'application/other', subject, blobs });
  const indexes = new RegistryIndexes(artifacts as unknown as RegistryClient, new AllowedRepositories(['*']));
  assert.equal(await indexes.find(request('r.example/app'), signal), undefined);
});
