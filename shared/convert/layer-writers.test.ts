import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { gunzipSync } from 'node:zlib';
import { sha256 } from '#shared/digest/digest.ts';
import { codingOfIndex } from '#shared/formats/index-coding.ts';
import { SpanDecoder } from '#shared/formats/span-decoder.ts';
import { indexFromToc } from '#shared/formats/toc/index-from-toc.ts';
import { tocFromTail } from '#shared/formats/toc/toc-tail.ts';
import type { LayerEntry, LayerIndex } from '#shared/layer/layer-index.ts';
import { TarReader } from '#shared/tar/tar-reader.ts';
import { TAR_END, tarHeader } from '#shared/tar/tar-writer.ts';
import { layerTar } from './layer-tar.ts';
import type { LayerWriterOptions, WrittenLayer } from './layer-writer.ts';
import { writerOf } from './layer-writers.ts';

type Content = readonly [path: string, content: Buffer];

function entry(path: string, fields: Partial<LayerEntry> = {}): LayerEntry {
  return {
    path: Buffer.from(path),
    type: 'file',
    mode: 0o644,
    uid: 1000,
    gid: 1000,
    mtimeSeconds: 1_700_000_000,
    mtimeNanoseconds: 0,
    size: 0,
    linkName: Buffer.alloc(0),
    deviceMajor: 0,
    deviceMinor: 0,
    xattrs: [],
    extents: [],
    ...fields,
  };
}

function tarOf(entries: readonly (readonly [LayerEntry, Buffer?])[]): Buffer {
  const parts: Buffer[] = [];
  for (const [about, content = Buffer.alloc(0)] of entries) {
    parts.push(
      tarHeader({ ...about, size: content.length }),
      content,
      Buffer.alloc((512 - (content.length % 512)) % 512),
    );
  }
  return Buffer.concat([...parts, TAR_END]);
}

async function* inChunks(bytes: Buffer, size: number): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

interface Written {
  readonly layer: WrittenLayer;
  readonly blob: Buffer;
  readonly index: LayerIndex;
}

async function write(
  format: 'estargz' | 'zstd-chunked',
  tar: Buffer,
  options: LayerWriterOptions = {},
  chunk = 100_000,
): Promise<Written> {
  const parts: Buffer[] = [];
  const sink = async (bytes: Uint8Array): Promise<void> => void parts.push(Buffer.from(bytes));
  const layer = await writerOf(format)(inChunks(tar, chunk), options, sink, new AbortController().signal);
  const blob = Buffer.concat(parts);
  const found = tocFromTail({ tail: blob, blobSize: blob.length, layer: layer.digest, annotations: layer.annotations });
  assert.ok(found.kind === 'toc', JSON.stringify(found));
  return { layer, blob, index: indexFromToc({ ...found, layer: layer.digest, blobSize: blob.length }) };
}

/** Every file's content, by way of the index. */
function contents({ blob, index }: Written): Map<string, Buffer> {
  const coding = codingOfIndex(index);
  using decoder = new SpanDecoder();
  const spans = index.spans.map((_, span) =>
    decoder.decode(coding, span, {
      form: 'compressed',
      bytes: blob.subarray(coding.blobStart(span), coding.blobEnd(span)),
    }),
  );
  const payload = Buffer.concat(spans);
  const files = new Map<string, Buffer>();
  let at = 0;
  for (const { path, size, type, extents } of index.entries) {
    if (type !== 'file') continue;
    const file = Buffer.alloc(size);
    for (const extent of extents) {
      payload.copy(file, extent.fileOffset, at, at + extent.length);
      at += extent.length;
    }
    files.set(path.toString(), file);
  }
  return files;
}

/** What an ordinary reader, that knows nothing of TOCs, finds in the blob. */
async function plainTar(blob: Buffer): Promise<{ readonly tar: Buffer; readonly entries: readonly LayerEntry[] }> {
  const parts: Buffer[] = [];
  for await (const part of layerTar(inChunks(blob, 50_000), new AbortController().signal)) parts.push(part);
  const tar = Buffer.concat(parts);
  const entries: LayerEntry[] = [];
  const reader = new TarReader({ entry: (found) => entries.push(found) });
  reader.push(tar);
  reader.end();
  return { tar, entries };
}

const files: readonly Content[] = [
  ['a/empty', Buffer.alloc(0)],
  ['a/small', Buffer.from('small')],
  ['a/block', Buffer.alloc(512, 'b')],
  ['b/large', randomBytes(300_001)],
  ['b/zeros', Buffer.alloc(200_000)],
  ['b/last', Buffer.from('last')],
];

const tar = tarOf([
  [entry('', { type: 'directory', mode: 0o755 })],
  [entry('a', { type: 'directory', mode: 0o1777 })],
  ...files.map(([path, content]) => [entry(path), content] as const),
  [entry('link', { type: 'symlink', linkName: Buffer.from('a/small') })],
  [entry('hard', { type: 'hardlink', linkName: Buffer.from('a/small') })],
  [entry('null', { type: 'character', deviceMajor: 1, deviceMinor: 3 })],
  [
    entry('cap', { xattrs: [[Buffer.from('security.capability'), Buffer.from([1, 0, 255, 2])]], mode: 0o4755 }),
    Buffer.from('x'),
  ],
  [entry('späte-zeit', { mtimeNanoseconds: 123_456_789 })],
]);

for (const format of ['estargz', 'zstd-chunked'] as const) {
  describe(`writing ${format}`, () => {
    test('an index of the blob has the entries and contents of the tar', async () => {
      const written = await write(format, tar, { chunkSize: 64 * 1024 });
      const found = contents(written);
      for (const [path, content] of files) assert.deepEqual(found.get(path), content, path);
      const cap = written.index.entries.find(({ path }) => path.toString() === 'cap');
      assert.deepEqual(cap?.xattrs[0]?.[1], Buffer.from([1, 0, 255, 2]));
      assert.equal(cap?.mode, 0o4755);
      assert.equal(
        written.index.entries.find(({ path }) => path.toString() === 'späte-zeit')?.mtimeNanoseconds,
        123_456_789,
      );
    });

    test('the blob is an ordinary compressed tar with the digests that are told', async () => {
      const written = await write(format, tar, { chunkSize: 64 * 1024 });
      const plain = await plainTar(written.blob);
      assert.equal(sha256(plain.tar), written.layer.diffId);
      assert.equal(sha256(written.blob), written.layer.digest);
      assert.equal(written.blob.length, written.layer.sizeBytes);
      const names = plain.entries.map(({ path }) => path.toString());
      for (const [path] of files) assert.ok(names.includes(path), path);
    });

    test('the same tar gives the same blob however it comes in pieces', async () => {
      const first = await write(format, tar, {}, 509);
      const second = await write(format, tar, {}, 1_000_000);
      assert.equal(first.layer.digest, second.layer.digest);
    });

    test('prioritised files come first, with their folders and link targets, and make the priority spans', async () => {
      const spoolFolder = await mkdtemp(join(tmpdir(), 'kindling-writers-'));
      try {
        const written = await write(format, tar, { prioritize: ['/b/last', 'hard', 'nothing'], spoolFolder });
        const names = written.index.entries.map(({ path }) => path.toString());
        assert.deepEqual(names.slice(0, 5), ['', 'b/last', 'a', 'a/small', 'hard'].slice(0, 5));
        assert.equal(names[5], '.prefetch.landmark');
        assert.equal(written.index.prioritySpans, 1);
        const found = contents(written);
        for (const [path, content] of files) assert.deepEqual(found.get(path), content, path);
        assert.deepEqual(await readdir(spoolFolder), []);
      } finally {
        await rm(spoolFolder, { recursive: true });
      }
    });

    test('a blob that was converted before is converted again without what the format adds', async () => {
      const once = await write(format, tar, {});
      const twice = await write(format, (await plainTar(once.blob)).tar, {});
      assert.equal(twice.layer.digest, once.layer.digest);
    });

    test('an aborted writer stops', async () => {
      const signal = AbortSignal.abort(new Error('enough'));
      await assert.rejects(
        writerOf(format)(inChunks(tar, 1000), {}, async () => {}, signal),
        /enough/,
      );
    });

    test('a tar that ends early is refused', async () => {
      await assert.rejects(write(format, tar.subarray(0, 5000)), { name: 'LayerError', code: 'malformed' });
    });
  });
}

test('small files share a member where a smallest member size is asked for', async () => {
  const many = Array.from({ length: 100 }, (_, at) => [entry(`f${at}`), Buffer.from(`content ${at}`)] as const);
  const apart = await write('estargz', tarOf(many));
  const together = await write('estargz', tarOf(many), { minChunkSize: 50_000 });
  assert.ok(together.blob.length < apart.blob.length * 0.8);
  assert.deepEqual(contents(together), contents(apart));
  gunzipSync(together.blob);
});
