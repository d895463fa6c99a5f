import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { writerOf } from '#shared/convert/layer-writers.ts';
import { sha256 } from '#shared/digest/digest.ts';
import { fakeMember, fakeTar } from '#shared/layer/fake-layer.ts';
import { type BlobDescriptor, type BlobSource, buildLayerIndex } from './build-index.ts';

const content = Buffer.from('content of a file');
const tar = fakeTar([fakeMember('file', 'file', content)]);
const { signal } = new AbortController();

function sourceOf(blob: Buffer): BlobSource & { readonly asked: string[] } {
  const asked: string[] = [];
  return {
    asked,
    range: async (start, end) => {
      asked.push(`${start}-${end}`);
      return blob.subarray(start, end);
    },
    async *stream() {
      asked.push('stream');
      for (let at = 0; at < blob.length; at += 100) yield blob.subarray(at, at + 100);
    },
  };
}

async function estargz(): Promise<{ readonly blob: Buffer; readonly descriptor: BlobDescriptor }> {
  const parts: Buffer[] = [];
  const written = await writerOf('estargz')(
    (async function* () {
      yield tar;
    })(),
    {},
    async (bytes) => void parts.push(Buffer.from(bytes)),
    signal,
  );
  const blob = Buffer.concat(parts);
  return { blob, descriptor: { digest: written.digest, size: blob.length, annotations: written.annotations } };
}

describe('building an index', () => {
  test('a blob with a TOC is asked for its end only', async () => {
    const { blob, descriptor } = await estargz();
    const source = sourceOf(blob);
    const index = await buildLayerIndex(source, descriptor, {}, signal);
    assert.equal(index.format, 'estargz');
    assert.deepEqual(source.asked, [`0-${blob.length}`]);
  });

  test('a TOC that nothing vouches for is not used', async () => {
    const { blob, descriptor } = await estargz();
    const source = sourceOf(blob);
    const index = await buildLayerIndex(source, { ...descriptor, annotations: {} }, {}, signal);
    assert.equal(index.format, 'gzip');
    assert.deepEqual(source.asked, ['stream']);
  });

  test('a TOC with another digest than the annotation says is refused', async () => {
    const { blob, descriptor } = await estargz();
    const annotations = { 'containerd.io/snapshot/stargz/toc.digest': sha256(tar) };
    await assert.rejects(buildLayerIndex(sourceOf(blob), { ...descriptor, annotations }, {}, signal), {
      name: 'LayerError',
      code: 'digest-mismatch',
    });
  });

  test('a plain blob is streamed, with progress, and its tar checked', async () => {
    const blob = gzipSync(tar);
    const progress: number[] = [];
    const descriptor = { digest: sha256(blob), size: blob.length };
    const options = { diffId: sha256(tar), onProgress: (bytes: number) => void progress.push(bytes) };
    const index = await buildLayerIndex(sourceOf(blob), descriptor, options, signal);
    assert.equal(index.diffId, sha256(tar));
    assert.equal(progress.at(-1), blob.length);
    const wrong = { diffId: sha256(blob) };
    await assert.rejects(buildLayerIndex(sourceOf(blob), descriptor, wrong, signal), { code: 'digest-mismatch' });
  });

  test('an aborted build stops', async () => {
    const blob = gzipSync(tar);
    const aborted = AbortSignal.abort(new Error('enough'));
    const descriptor = { digest: sha256(blob), size: blob.length };
    await assert.rejects(buildLayerIndex(sourceOf(blob), descriptor, {}, aborted), /enough/);
  });
});
