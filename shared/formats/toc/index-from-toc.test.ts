import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import * as fc from 'fast-check';
import { type Digest, sha256 } from '#shared/digest/digest.ts';
import { estargzFooter } from '#shared/formats/estargz/estargz-footer.ts';
import { codingOfIndex } from '#shared/formats/index-coding.ts';
import { SpanDecoder } from '#shared/formats/span-decoder.ts';
import { skippableFrame, zstdChunkedFooter } from '#shared/formats/zstd-chunked/zstd-chunked-footer.ts';
import { LayerError, type LayerIndex } from '#shared/layer/layer-index.ts';
import { indexFromToc } from './index-from-toc.ts';
import { TOC_DIGEST_ANNOTATION, tocFromTail, ZSTD_CHUNKED_CHECKSUM_ANNOTATIONS } from './toc-tail.ts';

interface Blob {
  readonly bytes: Buffer;
  readonly layer: Digest;
  readonly annotations: Record<string, string>;
}

type Entry = Record<string, unknown>;

/** A tar of one file, as far as a TOC member needs it. */
function tocTar(json: Buffer): Buffer {
  const header = Buffer.alloc(512);
  header.write('stargz.index.json');
  header.write(`${json.length.toString(8).padStart(11, '0')}\0`, 124);
  return Buffer.concat([header, json, Buffer.alloc(((512 - (json.length % 512)) % 512) + 1024)]);
}

function estargz(data: Buffer, entries: readonly Entry[]): Blob {
  const json = Buffer.from(JSON.stringify({ version: 1, entries }));
  const bytes = Buffer.concat([data, gzipSync(tocTar(json)), estargzFooter(data.length)]);
  return { bytes, layer: sha256(bytes), annotations: { [TOC_DIGEST_ANNOTATION]: sha256(json) } };
}

function zstdChunked(data: Buffer, entries: readonly Entry[]): Blob {
  const json = Buffer.from(JSON.stringify({ version: 1, entries }));
  const manifest = zstdCompressSync(json);
  const bytes = Buffer.concat([
    data,
    skippableFrame(manifest),
    zstdChunkedFooter({
      manifestOffset: data.length + 8,
      manifestBytes: manifest.length,
      manifestDecodedBytes: json.length,
    }),
  ]);
  return { bytes, layer: sha256(bytes), annotations: { [ZSTD_CHUNKED_CHECKSUM_ANNOTATIONS[0]]: sha256(manifest) } };
}

function indexOf(blob: Blob): LayerIndex {
  const { bytes, layer, annotations } = blob;
  const found = tocFromTail({ tail: bytes, blobSize: bytes.length, layer, annotations });
  assert.equal(found.kind, 'toc');
  return indexFromToc({ ...found, layer, blobSize: bytes.length });
}

function contentOf(index: LayerIndex, blob: Buffer): Buffer {
  const coding = codingOfIndex(index);
  using decoder = new SpanDecoder();
  return Buffer.concat(
    index.spans.map((_, span) =>
      decoder.decode(coding, span, {
        form: 'compressed',
        bytes: blob.subarray(coding.blobStart(span), coding.blobEnd(span)),
      }),
    ),
  );
}

function refusal(entries: readonly Entry[], data = Buffer.alloc(1000)): LayerError {
  const blob = estargz(data, entries);
  try {
    indexOf(blob);
  } catch (error) {
    assert.ok(error instanceof LayerError, String(error));
    return error;
  }
  throw new Error('it was accepted');
}

const hello = Buffer.from('hello, world');
const reg = (fields: Entry): Entry => ({ name: 'a', type: 'reg', mode: 0o644, ...fields });

describe('index from an eStargz TOC', () => {
  test('metadata comes out as the TOC has it', () => {
    const member = gzipSync(hello);
    const index = indexOf(
      estargz(member, [
        { name: './usr/', type: 'dir', mode: 0o41755, modtime: '2024-02-29T12:34:56Z', uid: 7, gid: 8 },
        reg({
          name: '/usr//näme',
          size: 12,
          offset: 0,
          digest: sha256(hello),
          mode: 0o104755,
          xattrs: { 'user.x': 'AP8=' },
        }),
        { name: 'dev/null', type: 'char', devMajor: 1, devMinor: 3 },
        { name: 'link', type: 'symlink', linkName: '../else/where/' },
        { name: 'hard', type: 'hardlink', linkName: './usr/näme' },
      ]),
    );
    const [usr, file, device, link, hard] = index.entries;
    assert.equal(usr?.path.toString(), 'usr');
    assert.equal(usr?.mode, 0o1755);
    assert.equal(usr?.mtimeSeconds, Date.UTC(2024, 1, 29, 12, 34, 56) / 1000);
    assert.deepEqual([usr?.uid, usr?.gid], [7, 8]);
    assert.equal(file?.path.toString(), 'usr/näme');
    assert.equal(file?.mode, 0o4755);
    assert.deepEqual(file?.xattrs[0]?.[1], Buffer.from([0, 255]));
    assert.deepEqual([device?.deviceMajor, device?.deviceMinor], [1, 3]);
    assert.equal(link?.linkName.toString(), '../else/where/');
    assert.equal(hard?.linkName.toString(), 'usr/näme');
  });

  test('times have zones, fractions and a zero', () => {
    const times = ['2024-01-01T01:00:00.25+01:00', '', '0001-01-01T00:00:00Z', '1969-12-31T23:59:59Z'];
    const index = indexOf(
      estargz(
        Buffer.from([0]),
        times.map((modtime, at) => ({ name: `d${at}`, type: 'dir', modtime })),
      ),
    );
    assert.deepEqual(
      index.entries.map((entry) => [entry.mtimeSeconds, entry.mtimeNanoseconds]),
      [
        [Date.UTC(2024, 0, 1) / 1000, 250_000_000],
        [0, 0],
        [0, 0],
        [-1, 0],
      ],
    );
  });

  test('small files share a span, each decoded from its own member, headers behind them ignored', () => {
    const files = Array.from({ length: 50 }, (_, at) => Buffer.from(`content of file ${at} `.repeat(at + 1)));
    let offset = 0;
    const members: Buffer[] = [];
    const entries = files.map((content, at) => {
      const member = gzipSync(Buffer.concat([content, Buffer.alloc(1536, 'header')]));
      members.push(member);
      const entry = reg({ name: `f${at}`, size: content.length, offset, digest: sha256(content) });
      offset += member.length;
      return entry;
    });
    const blob = estargz(Buffer.concat(members), entries);
    const index = indexOf(blob);
    assert.equal(index.spans.length, 1);
    assert.deepEqual(contentOf(index, blob.bytes), Buffer.concat(files));
  });

  test('chunks that share a member are decoded once', () => {
    const decoded = Buffer.concat([Buffer.from('aaaa'), Buffer.alloc(508), Buffer.from('bbbbbb'), Buffer.alloc(100)]);
    const member = gzipSync(decoded);
    const blob = estargz(member, [
      reg({ name: 'a', size: 4, offset: 0, chunkDigest: sha256(Buffer.from('aaaa')) }),
      reg({ name: 'b', size: 6, offset: 0, innerOffset: 512, chunkDigest: sha256(Buffer.from('bbbbbb')) }),
    ]);
    const index = indexOf(blob);
    assert.equal(index.spans[0]?.segments.length, 1);
    assert.equal(contentOf(index, blob.bytes).toString(), 'aaaabbbbbb');
  });

  test('a large file is a span for each chunk', () => {
    const chunk = Buffer.alloc(700_000, 'x');
    const members = [gzipSync(chunk), gzipSync(chunk), gzipSync(Buffer.from('end'))];
    let offset = 0;
    const offsets = members.map((member) => (offset += member.length) - member.length);
    const digest = sha256(chunk);
    const blob = estargz(Buffer.concat(members), [
      reg({ size: 1_400_003, offset: 0, chunkSize: 700_000, chunkDigest: digest }),
      { type: 'chunk', name: 'a', offset: offsets[1], chunkOffset: 700_000, chunkSize: 700_000, chunkDigest: digest },
      { type: 'chunk', name: 'a', offset: offsets[2], chunkOffset: 1_400_000, chunkDigest: sha256(Buffer.from('end')) },
    ]);
    const index = indexOf(blob);
    assert.equal(index.spans.length, 3);
    assert.equal(contentOf(index, blob.bytes).length, 1_400_003);
  });

  test('the landmark ends the priority spans', () => {
    const one = gzipSync('1');
    const mark = gzipSync('\x0f');
    const blob = estargz(Buffer.concat([one, mark, one]), [
      reg({ size: 1, offset: 0, digest: sha256(Buffer.from('1')) }),
      reg({ name: '.prefetch.landmark', size: 1, offset: one.length, digest: sha256(Buffer.from('\x0f')) }),
      reg({ name: 'b', size: 1, offset: one.length + mark.length, digest: sha256(Buffer.from('1')) }),
    ]);
    const index = indexOf(blob);
    assert.equal(index.prioritySpans, 1);
    assert.equal(index.spans.length, 2);
  });

  test('what a TOC must not say is refused with the entry that says it', () => {
    const digest = sha256(hello);
    const cases: readonly [string, readonly Entry[]][] = [
      ['escapes', [reg({ name: '../etc/passwd', size: 12, digest })]],
      ['escapes', [{ name: 'l', type: 'hardlink', linkName: 'a/../../b' }]],
      ['malformed', [reg({ size: 12, digest: 'md5:1234' })]],
      ['unsupported', [reg({ size: 12 })]],
      ['malformed', [reg({ size: -1, digest })]],
      ['malformed', [reg({ size: 1.5, digest })]],
      ['malformed', [reg({ size: 12, digest, offset: 5000 })]],
      ['malformed', [reg({ size: 12, digest, offset: 100 }), reg({ name: 'b', size: 12, digest, offset: 50 })]],
      ['malformed', [reg({ size: 12, digest }), reg({ name: 'b', size: 12, digest, innerOffset: 3 })]],
      ['malformed', [{ type: 'chunk', name: 'a' }]],
      ['malformed', [reg({ size: 12, chunkSize: 5, chunkDigest: digest })]],
      ['too-large', [reg({ size: 2 ** 30, digest })]],
      ['too-large', [reg({ size: 12, digest, innerOffset: 2 ** 30 })]],
      ['unsupported', [{ name: 'x', type: 'socket' }]],
      ['malformed', [reg({ name: 5 })]],
      ['malformed', [{ name: 'd', type: 'dir', modtime: 'yesterday' }]],
      ['malformed', [{ name: 'd', type: 'dir', xattrs: { a: 1 } }]],
      ['malformed', [null as unknown as Entry]],
    ];
    for (const [code, entries] of cases) {
      const error = refusal(entries);
      assert.equal(error.code, code, `${JSON.stringify(entries)}: ${error.message}`);
      assert.match(error.message, /TOC of layer sha256:/);
    }
  });

  test('a chunk with another content than its digest says is not decoded', () => {
    const blob = estargz(gzipSync(hello), [reg({ size: 12, offset: 0, digest: sha256(Buffer.from('other')) })]);
    assert.throws(() => contentOf(indexOf(blob), blob.bytes), { name: 'LayerError', code: 'digest-mismatch' });
  });

  test('values that are nested without end are refused, wherever they stand', () => {
    const digest = sha256(hello);
    const nested = '['.repeat(50_000) + ']'.repeat(50_000);
    const index = (json: string) =>
      indexFromToc({ json: Buffer.from(json), format: 'estargz', layer: digest, blobSize: 1000, dataEnd: 500 });
    assert.throws(() => index(`{"version":${nested},"entries":[]}`), { name: 'LayerError', code: 'unsupported' });
    for (const field of ['name', 'type', 'size', 'offset', 'mode', 'uid', 'digest', 'modtime', 'xattrs']) {
      const entry = { ...reg({ name: 'a', size: 12, offset: 0, digest }), [field]: 'here' };
      const json = JSON.stringify({ version: 1, entries: [entry] }).replace(
        `"${field}":"here"`,
        `"${field}":${nested}`,
      );
      assert.throws(() => index(json), { name: 'LayerError' }, field);
    }
  });

  test('25,000 entries are indexed quickly enough to be worth no thought', () => {
    const digest = sha256(hello);
    const entries = Array.from({ length: 25_000 }, (_, at) =>
      reg({
        name: `usr/lib/python3/d${at % 100}/file${at}.py`,
        size: 12,
        offset: at * 30,
        digest,
        modtime: '2024-01-01T00:00:00Z',
      }),
    );
    const json = Buffer.from(JSON.stringify({ version: 1, entries }));
    const index = indexFromToc({ json, format: 'estargz', layer: digest, blobSize: 10 ** 6, dataEnd: 10 ** 6 - 500 });
    assert.equal(index.entries.length, 25_000);
  });
});

describe('index from a zstd:chunked manifest', () => {
  test('frames with an end are read exactly, zeros are holes', () => {
    const a = zstdCompressSync(hello);
    const zeros = zstdCompressSync(Buffer.alloc(1000));
    const b = zstdCompressSync(Buffer.from('end'));
    const header = zstdCompressSync(Buffer.alloc(512, 'h'));
    const blob = zstdChunked(Buffer.concat([header, a, zeros, b, header]), [
      reg({
        size: 1015,
        offset: header.length,
        endOffset: header.length + a.length + zeros.length + b.length,
        chunkSize: 12,
        chunkDigest: sha256(hello),
      }),
      {
        type: 'chunk',
        name: 'a',
        offset: header.length + a.length,
        chunkOffset: 12,
        chunkSize: 1000,
        chunkType: 'zeros',
      },
      {
        type: 'chunk',
        name: 'a',
        offset: header.length + a.length + zeros.length,
        chunkOffset: 1012,
        chunkSize: 3,
        chunkDigest: sha256(Buffer.from('end')),
      },
    ]);
    const index = indexOf(blob);
    assert.equal(index.format, 'zstd-chunked');
    assert.deepEqual(
      index.entries[0]?.extents.map((extent) => extent.fileOffset),
      [0, 1012],
    );
    assert.equal(contentOf(index, blob.bytes).toString(), `${hello}end`);
  });
});

describe('the end of a blob', () => {
  const blob = estargz(gzipSync(hello), [reg({ size: 12, offset: 0, digest: sha256(hello) })]);
  const source = { layer: blob.layer, blobSize: blob.bytes.length, annotations: blob.annotations };

  test('a tail that is too short says from where to read', () => {
    const found = tocFromTail({ ...source, tail: blob.bytes.subarray(-60) });
    assert.equal(found.kind, 'more');
    assert.ok(found.kind === 'more');
    assert.equal(tocFromTail({ ...source, tail: blob.bytes.subarray(found.from) }).kind, 'toc');
  });

  test('without a digest in the annotations a TOC is not used', () => {
    assert.equal(tocFromTail({ ...source, tail: blob.bytes, annotations: {} }).kind, 'none');
  });

  test('a TOC with another digest is refused', () => {
    const annotations = { [TOC_DIGEST_ANNOTATION]: sha256(Buffer.from('other')) };
    assert.throws(() => tocFromTail({ ...source, tail: blob.bytes, annotations }), { code: 'digest-mismatch' });
  });

  test('a TOC that inflates without end is refused', () => {
    const member = gzipSync(Buffer.alloc(16 * 1024 * 1024));
    const bomb = Buffer.concat(Array.from({ length: 17 }, () => member));
    const tail = Buffer.concat([hello, bomb, estargzFooter(hello.length)]);
    assert.throws(() => tocFromTail({ ...source, tail, blobSize: tail.length }), { code: 'too-large' });
  });

  test('a blob of any bytes is none, or refused, and nothing else', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        const tail = Buffer.from(bytes);
        return tocFromTail({ ...source, tail, blobSize: tail.length }).kind === 'none';
      }),
    );
  });

  test('changing any bytes of a blob with a TOC never gives another content', () => {
    const right = contentOf(indexOf(blob), blob.bytes);
    const mutation = fc.tuple(fc.nat(blob.bytes.length - 1), fc.integer({ min: 1, max: 255 }));
    fc.assert(
      fc.property(fc.array(mutation, { minLength: 1, maxLength: 4 }), (mutations) => {
        const bytes = Buffer.from(blob.bytes);
        for (const [at, xor] of mutations) bytes[at] = (bytes[at] ?? 0) ^ xor;
        try {
          const found = tocFromTail({ ...source, tail: bytes });
          if (found.kind !== 'toc') return;
          const index = indexFromToc({ ...found, layer: blob.layer, blobSize: bytes.length });
          assert.deepEqual(contentOf(index, bytes), right);
        } catch (error) {
          assert.ok(error instanceof LayerError, String(error));
        }
      }),
      { numRuns: 500 },
    );
  });

  test('a TOC of any JSON is an index or refused', () => {
    const fields = fc.record(
      {
        name: fc.oneof(fc.string(), fc.constantFrom('a', 'a/b', '/', '.prefetch.landmark')),
        type: fc.constantFrom('reg', 'reg', 'dir', 'chunk', 'symlink', 'hardlink', 'char', 'fifo', 'zzz'),
        size: fc.oneof(fc.nat(100), fc.maxSafeNat()),
        offset: fc.nat(1000),
        innerOffset: fc.nat(1000),
        chunkOffset: fc.nat(100),
        chunkSize: fc.nat(100),
        endOffset: fc.nat(1000),
        mode: fc.integer(),
        modtime: fc.oneof(fc.string(), fc.constant('2024-01-01T00:00:00Z')),
        linkName: fc.string(),
        digest: fc.constantFrom('', sha256(hello), 'x'),
        xattrs: fc.oneof(fc.dictionary(fc.string(), fc.base64String()), fc.jsonValue()),
      },
      { requiredKeys: ['type'] },
    );
    fc.assert(
      fc.property(fc.oneof(fc.array(fields, { maxLength: 6 }), fc.jsonValue()), (entries) => {
        const json = Buffer.from(JSON.stringify({ version: 1, entries }));
        try {
          indexFromToc({ json, format: 'estargz', layer: blob.layer, blobSize: 2000, dataEnd: 1000 });
        } catch (error) {
          assert.ok(error instanceof LayerError, String(error));
        }
      }),
      { numRuns: 500 },
    );
  });
});
