import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { writerOf } from '#shared/convert/layer-writers.ts';
import { sha256 } from '#shared/digest/digest.ts';
import { fakeMember, fakeTar } from '#shared/layer/fake-layer.ts';
import type { LayerIndex } from '#shared/layer/layer-index.ts';
import { type BlobDescriptor, type BlobSource, buildLayerIndex } from './build-index.ts';

const content = Buffer.from('content of a file');
const tarOf = (uid: number): Buffer => fakeTar([fakeMember('file', 'file', content, { uid })]);
const tar = tarOf(1001);
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

async function lazy(
  format: 'estargz' | 'zstd-chunked',
  of = tar,
): Promise<{ readonly blob: Buffer; readonly descriptor: BlobDescriptor }> {
  const parts: Buffer[] = [];
  const written = await writerOf(format)(
    (async function* () {
      yield of;
    })(),
    {},
    async (bytes) => void parts.push(Buffer.from(bytes)),
    signal,
  );
  const blob = Buffer.concat(parts);
  return { blob, descriptor: { digest: written.digest, size: blob.length, annotations: written.annotations } };
}

const estargz = () => lazy('estargz');

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

  for (const format of ['estargz', 'zstd-chunked'] as const) {
    test(`a TOC (${format}) that its tar bears out gives the same spans as alone, and the diff ID`, async () => {
      const { blob, descriptor } = await lazy(format);
      const source = sourceOf(blob);
      const options = { toc: 'check', onContradiction: assert.fail } as const;
      const checked = await buildLayerIndex(source, descriptor, options, signal);
      assert.deepEqual(source.asked, [`0-${blob.length}`, 'stream']);
      assert.ok(checked.diffId);
      const byToc = await buildLayerIndex(source, descriptor, {}, signal);
      assert.equal(byToc.diffId, undefined);
      assert.deepEqual(checked, { ...byToc, diffId: checked.diffId });
      const other = { ...options, diffId: sha256(blob) };
      await assert.rejects(buildLayerIndex(source, descriptor, other, signal), { code: 'digest-mismatch' });
    });

    test(`a TOC (${format}) that says what the tar does not is left for the tar, and that is told`, async () => {
      const dataEnd = async ({ blob, descriptor }: Awaited<ReturnType<typeof lazy>>): Promise<number> => {
        const { spans } = await buildLayerIndex(sourceOf(blob), descriptor, {}, signal);
        const { blobOffset = 0, blobLength = 0 } = spans[0]?.segments[0] ?? {};
        return blobOffset + blobLength;
      };
      const honest = await lazy(format);
      const end = await dataEnd(honest);
      let uid = 1001;
      let other: typeof honest;
      // Another owner whose header and TOC take as many bytes.
      do other = await lazy(format, tarOf(++uid));
      while (other.blob.length !== honest.blob.length || (await dataEnd(other)) !== end);
      // The tar's header and content from the one, the TOC from the other.
      const blob = Buffer.from(other.blob);
      honest.blob.copy(blob, 0, 0, end);
      const { annotations } = other.descriptor;
      const descriptor = { digest: sha256(blob), size: blob.length, annotations };
      const told: string[] = [];
      const options = { toc: 'check', onContradiction: (difference: string) => void told.push(difference) } as const;
      const index = await buildLayerIndex(sourceOf(blob), descriptor, options, signal);
      assert.deepEqual(told, [`"file": its uid is 1001, the table says ${uid}`]);
      const ownerIn = (found: LayerIndex) => found.entries.find(({ path }) => path.toString() === 'file')?.uid;
      assert.equal(ownerIn(index), 1001);
      const believed = await buildLayerIndex(sourceOf(blob), descriptor, {}, signal);
      assert.equal(ownerIn(believed), uid);
    });
  }

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
