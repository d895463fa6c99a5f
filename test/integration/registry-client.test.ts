import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { sha256 } from '#shared/digest/digest.ts';
import { DockerCredentials } from '#shared/registry/docker-credentials.ts';
import { MEDIA_TYPES } from '#shared/registry/manifest.ts';
import { hostPlatform, parsePlatform } from '#shared/registry/platform.ts';
import { parseReference } from '#shared/registry/reference.ts';
import { RegistryClient } from '#shared/registry/registry-client.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';

const signal = AbortSignal.timeout(60_000);
/** `me:kindling` in bcrypt at its lowest cost. */
const HTPASSWD = 'me:$2b$05$abcdefghijklmnopqrstuuWWRvy5S.9Km3QdLOWd6R78W0TtuWOhm\n';

async function* inPieces(bytes: Buffer): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += 1_000_000) yield bytes.subarray(at, at + 1_000_000);
}

test('a real registry takes blobs, manifests and artifacts from the client and gives them back', async () => {
  await using folder = await TempFolder.create('rc');
  await using registry = await TestRegistry.start({ folder: folder.path, htpasswd: HTPASSWD }, signal);
  const auths = { [registry.host]: { auth: Buffer.from('me:kindling').toString('base64') } };
  await writeFile(folder.join('config.json'), JSON.stringify({ auths }));
  const client = new RegistryClient({ credentials: new DockerCredentials(folder.join('config.json')) });
  const stranger = new RegistryClient();
  try {
    const repository = `${registry.host}/some/image`;
    const blob = randomBytes(5_000_000);
    const layer = { mediaType: MEDIA_TYPES.ociLayerTar, digest: sha256(blob), size: blob.length };
    assert.equal(await client.blobExists(repository, layer.digest, signal), false);
    assert.equal(await client.uploadBlob(repository, layer, () => inPieces(blob), signal), true);
    assert.equal(await client.uploadBlob(repository, layer, () => inPieces(blob), signal), false);
    assert.equal(await client.mountBlob(`${registry.host}/other`, layer.digest, repository, signal), true);
    assert.equal(await client.blobExists(`${registry.host}/other`, layer.digest, signal), true);
    const missing = sha256(Buffer.from('missing'));
    assert.equal(await client.mountBlob(`${registry.host}/other`, missing, repository, signal), false);

    const wrong = { digest: missing, size: blob.length };
    await assert.rejects(
      client.uploadBlob(repository, wrong, () => inPieces(blob), signal),
      { name: 'RegistryError', status: 400 },
    );

    const config = Buffer.from('{"os":"linux"}');
    const configBlob = { mediaType: MEDIA_TYPES.ociConfig, digest: sha256(config), size: config.length };
    await client.uploadBlob(repository, configBlob, () => inPieces(config), signal);
    const manifest = { schemaVersion: 2, mediaType: MEDIA_TYPES.ociManifest, config: configBlob, layers: [layer] };
    const bytes = Buffer.from(JSON.stringify(manifest));
    const put = await client.putManifest(repository, sha256(bytes), bytes, manifest.mediaType, signal);
    const index = {
      schemaVersion: 2,
      mediaType: MEDIA_TYPES.ociIndex,
      manifests: [{ ...put, platform: hostPlatform() }],
    };
    await client.putManifest(repository, 'v1', Buffer.from(JSON.stringify(index)), index.mediaType, signal);

    const reference = parseReference(`${repository}:v1`);
    const resolved = await client.resolve(reference, signal);
    assert.equal(resolved.mediaType, MEDIA_TYPES.ociIndex);
    assert.deepEqual((await client.manifest(reference, signal)).descriptor, resolved);
    const image = await client.platformManifest(reference, hostPlatform(), signal);
    assert.deepEqual(image.parsed.layers, [layer]);
    assert.deepEqual(image.bytes, bytes);
    await assert.rejects(client.platformManifest(reference, parsePlatform('windows/amd64'), signal), {
      code: 'not-found',
      message: /no image for windows\/amd64; it has linux/,
    });
    assert.deepEqual(await client.blob(repository, configBlob, signal), config);

    const ranges = Array.from({ length: 40 }, (_, i) => [i * 100_003, i * 100_003 + 300_000] as const);
    const read = ranges.map(([start, end]) => client.readRange(repository, layer.digest, start, end, signal));
    for (const [i, part] of (await Promise.all(read)).entries()) {
      assert.ok(part.equals(blob.subarray(...(ranges[i] ?? []))), `range ${i}`);
    }
    const streamed: Buffer[] = [];
    for await (const chunk of client.blobStream(repository, layer, signal)) streamed.push(chunk);
    assert.ok(Buffer.concat(streamed).equals(blob));
    assert.ok((await client.tail(repository, layer, 1000, signal)).equals(blob.subarray(-1000)));

    const artifact = (content: string) => ({
      artifactType: 'application/vnd.example.note',
      subject: put,
      blobs: [{ mediaType: 'text/plain', bytes: Buffer.from(content) }],
    });
    assert.deepEqual(await client.referrers(repository, put.digest, undefined, signal), []);
    const notes = [
      await client.putArtifact(repository, artifact('one'), signal),
      await client.putArtifact(repository, artifact('two'), signal),
      await client.putArtifact(repository, artifact('one'), signal),
    ];
    const found = await client.referrers(repository, put.digest, 'application/vnd.example.note', signal);
    assert.deepEqual(found.map((note) => note.digest).sort(), [notes[0]?.digest, notes[1]?.digest].sort());
    assert.deepEqual(await client.referrers(repository, put.digest, 'application/other', signal), []);

    await assert.rejects(stranger.resolve(reference, signal), { code: 'unauthorized', status: 401 });
    const authorization = await client.authorizationOf(repository, signal);
    assert.equal(await stranger.blobExists(repository, layer.digest, signal, { authorization }), true);

    await registry.stop();
    const quick = new RegistryClient({ attempts: 1 });
    await assert.rejects(quick.resolve(reference, signal), { code: 'unreachable', retryable: true });
    await quick.close();
    const during = client.readRange(repository, layer.digest, 0, 10, signal);
    await registry.restart(signal);
    await during.catch(() => {});
    assert.ok((await client.readRange(repository, layer.digest, 0, 10, signal)).equals(blob.subarray(0, 10)));
  } finally {
    await client.close();
    await stranger.close();
  }
});
