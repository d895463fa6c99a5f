import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { describe, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import * as fc from 'fast-check';
import { sha256 } from '#shared/digest/digest.ts';
import { SpanDecoder } from '#shared/formats/span-decoder.ts';
import { fakeMember, fakeTar, fillImage, indexOfTar } from '#shared/layer/fake-layer.ts';
import { encodeLayerIndex } from '#shared/layer/index-codec.ts';
import { buildLayerImage } from '#shared/layer/layer-image.ts';
import { LayerError, type LayerErrorCode, type LayerIndex } from '#shared/layer/layer-index.ts';
import { parseSpanMap } from '#shared/layer/span-map-file.ts';
import { UNCOMPRESSED, writeZtoc, type ZtocOptions, type ZtocParts } from '#test/images/soci-ztoc.ts';
import { GZIP_HEAD_BYTES, indexFromZtoc } from './index-from-ztoc.ts';

/** Small, so that a small tar has many. */
const SPAN_BYTES = 100_000;

function text(length: number): Buffer {
  const words = Array.from({ length: 400 }, (_, i) =>
    createHash('md5')
      .update(`${i}`)
      .digest('base64')
      .slice(0, 3 + (i % 7)),
  );
  let state = 7;
  let out = '';
  while (out.length < length) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    out += `${words[(state >>> 8) % words.length]} `;
  }
  return Buffer.from(out.slice(0, length));
}

const members = [
  fakeMember('etc', 'directory'),
  fakeMember('etc/big', 'file', text(900_000), { uid: 70_000, mtimeNanoseconds: 123_000_000 }),
  fakeMember('etc/empty'),
  fakeMember('etc/link', 'symlink', '', { linkName: '../etc/big' }),
  fakeMember('etc/twin', 'hardlink', '', { linkName: 'etc/big' }),
  fakeMember('dev/null', 'character', '', { deviceMajor: 1, deviceMinor: 3, mode: 0o666 }),
  fakeMember('bin/ping', 'file', text(40_000), {
    mode: 0o4755,
    xattrs: [[Buffer.from('security.capability'), Buffer.from([1, 0, 0, 2, 0xff, 0x80, 0])]],
  }),
  fakeMember('zeros', 'file', Buffer.alloc(300_000)),
];
const tar = fakeTar(members);
const plain = indexOfTar(tar, SPAN_BYTES);

/** The image of the tar itself, under the blob's name. */
function expected(blob: Buffer): Buffer {
  return fillImage(buildLayerImage({ ...plain, layer: sha256(blob) }), tar);
}

function indexOf(blob: Buffer, options: ZtocOptions = {}): LayerIndex {
  const ztoc = writeZtoc(blob, plain.entries, tar.length, { spanBytes: SPAN_BYTES, ...options });
  return indexFromZtoc({ ztoc, head: blob.subarray(0, GZIP_HEAD_BYTES), layer: sha256(blob), blobSize: blob.length });
}

/** The image with every span decoded from the blob. */
function filled(index: LayerIndex, blob: Buffer): Buffer {
  const image = buildLayerImage(index);
  const map = parseSpanMap(image.map);
  const file = Buffer.alloc(image.imageSize);
  image.metadata.copy(file);
  using decoder = new SpanDecoder();
  for (let span = 0; span < map.spanCount; span += 1) {
    const bytes = blob.subarray(map.blobStart(span), map.blobEnd(span));
    const payload = decoder.decode(map, span, { form: 'compressed', bytes });
    let at = 0;
    for (const { imageOffset, length } of map.extents(span)) {
      file.set(payload.subarray(at, at + length), imageOffset);
      at += length;
    }
  }
  return file;
}

function refused(run: () => unknown, code: LayerErrorCode, message: RegExp): void {
  assert.throws(run, (error) => {
    assert.ok(error instanceof LayerError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, message);
    return true;
  });
}

/** A gzip member whose header carries a file name. */
function named(bytes: Buffer): Buffer {
  const member = gzipSync(bytes);
  member[3] = 8;
  return Buffer.concat([member.subarray(0, 10), Buffer.from('layer.tar\0'), member.subarray(10)]);
}

describe('an index from a SOCI zTOC', () => {
  const half = 512 * 1000;
  for (const [what, blob] of [
    ['one gzip member', gzipSync(tar)],
    ['fast gzip', gzipSync(tar, { level: 1 })],
    ['stored gzip', gzipSync(tar, { level: 0 })],
    ['several members', Buffer.concat([gzipSync(tar.subarray(0, half)), gzipSync(tar.subarray(half))])],
    ['a header with a name', named(tar)],
  ] as const) {
    test(`gives the same layer image as the tar itself: ${what}`, () => {
      const index = indexOf(blob);
      assert.ok(index.spans.length > 3, `${index.spans.length} spans`);
      assert.equal(index.format, 'soci');
      assert.ok(filled(index, blob).equals(expected(blob)));
    });
  }

  test('gives the same layer image as the tar itself: the tar', () => {
    const index = indexOf(tar, { algorithm: UNCOMPRESSED });
    assert.equal(index.spans.length, Math.ceil(tar.length / SPAN_BYTES));
    assert.ok(filled(index, tar).equals(expected(tar)));
    // What stands behind the tar's end is in the blob, in a digest, and in no span.
    const padded = Buffer.concat([tar, Buffer.alloc(2 * SPAN_BYTES)]);
    assert.ok(filled(indexOf(padded, { algorithm: UNCOMPRESSED }), padded).equals(expected(padded)));
    const other = (change: (checkpoints: Buffer) => void): ZtocOptions => ({
      algorithm: UNCOMPRESSED,
      change: ({ checkpoints }) => change(checkpoints),
    });
    refused(
      () =>
        indexOf(
          tar,
          other((bytes) => bytes.writeInt32LE(3, 0)),
        ),
      'unsupported',
      /of version 3/,
    );
    refused(
      () =>
        indexOf(
          tar,
          other((bytes) => bytes.writeBigInt64LE(1n, 4)),
        ),
      'malformed',
      /spans of 1 bytes/,
    );
    refused(
      () =>
        indexOf(
          tar,
          other((bytes) => bytes.writeBigInt64LE(7n, 12)),
        ),
      'malformed',
      /of a tar of 7 bytes/,
    );
    refused(
      () =>
        indexOf(
          tar,
          other((bytes) => bytes.writeBigInt64LE(70_000n, 4)),
        ),
      'malformed',
      /and \d+ digests/,
    );
  });

  test('reads checkpoints of version 1, which lack the first, where the gzip header has no name', () => {
    const blob = gzipSync(tar);
    assert.ok(filled(indexOf(blob, { zinfoVersion: 1 }), blob).equals(expected(blob)));
    refused(() => indexOf(named(tar), { zinfoVersion: 1 }), 'unsupported', /a gzip header of 10 bytes for granted/);
  });

  test('verifies what comes from the blob before it is decoded, and takes nothing else', () => {
    const blob = gzipSync(tar);
    const map = parseSpanMap(buildLayerImage(indexOf(blob)).map);
    using decoder = new SpanDecoder();
    const bytes = Buffer.from(blob.subarray(map.blobStart(1), map.blobEnd(1)));
    const payload = Buffer.from(decoder.decode(map, 1, { form: 'compressed', bytes }));
    refused(() => decoder.decode(map, 1, { form: 'payload', bytes: payload }), 'unsupported', /nothing but the blob/);
    bytes[1000] = (bytes[1000] ?? 0) ^ 1;
    refused(() => decoder.decode(map, 1, { form: 'compressed', bytes }), 'digest-mismatch', /another digest/);
  });

  test('is not handed on: it verifies less than an index of ours', () => {
    refused(() => encodeLayerIndex(indexOf(gzipSync(tar))), 'unsupported', /Cannot encode/);
  });

  const blob = gzipSync(tar);
  const wrong: readonly (readonly [string, LayerErrorCode, RegExp, ZtocOptions])[] = [
    ['of another version', 'unsupported', /its version is "1.0"/, { version: '1.0' }],
    ['of a blob in another coding', 'unsupported', /neither gzip nor a tar/, { algorithm: 3 }],
    ['of a blob of another size', 'malformed', /of a blob of \d+ bytes/, changed((parts) => (parts.blobSize += 1))],
    ['with a digest too few', 'malformed', /its last span/, changed((parts) => parts.digests.pop())],
    [
      'with fewer digests than checkpoints',
      'malformed',
      /checkpoints and/,
      changed((parts) => {
        parts.digests.pop();
        parts.lastSpan -= 1;
      }),
    ],
    [
      'with a digest that is none',
      'malformed',
      /digest of span 0/,
      changed((parts) => (parts.digests[0] = 'sha256:x')),
    ],
    [
      'with checkpoints cut off',
      'malformed',
      /bytes for/,
      changed(({ checkpoints }, parts) => (parts.checkpoints = checkpoints.subarray(0, -1))),
    ],
    [
      'with checkpoints out of order',
      'malformed',
      /checkpoint 1 is out of order/,
      changed(({ checkpoints }) => checkpoints.writeBigInt64LE(1n, 12 + 32_785)),
    ],
    [
      'with more than 7 bits',
      'malformed',
      /checkpoint 1 is out of order or its bounds/,
      changed(({ checkpoints }) => checkpoints.writeUInt8(8, 12 + 32_785 + 16)),
    ],
    [
      'whose first span begins elsewhere',
      'malformed',
      /its first span begins at 11/,
      changed(({ checkpoints }) => checkpoints.writeBigInt64LE(11n, 12)),
    ],
    [
      'whose files overlap',
      'malformed',
      /overlaps/,
      changed((parts) => parts.entries.push(...parts.entries.slice(1, 2))),
    ],
    ['whose files leave the tar', 'malformed', /leaves the tar/, changed((parts) => (parts.streamSize = 200_000))],
  ];
  for (const [what, code, message, options] of wrong) {
    test(`is refused ${what}`, () => refused(() => indexOf(blob, options), code, message));
  }

  test('is refused with spans larger than ours may be: the layer is then read in one pass', () => {
    const large = gzipSync(Buffer.alloc(20 * 1024 * 1024));
    const ztoc = writeZtoc(large, [], 20 * 1024 * 1024, { spanBytes: 2 ** 40 });
    const source = { ztoc, head: large.subarray(0, GZIP_HEAD_BYTES), layer: sha256(large), blobSize: large.length };
    refused(() => indexFromZtoc(source), 'unsupported', /its span 0 has 20971520 bytes/);
  });

  test('says what is wrong with any bytes, and nothing worse', () => {
    const small = fakeTar(members.slice(2, 7));
    const smallBlob = gzipSync(small);
    const { entries } = indexOfTar(small, SPAN_BYTES);
    const good = writeZtoc(smallBlob, entries, small.length, { spanBytes: 20_000 });
    const take = (ztoc: Buffer): void => {
      try {
        const head = smallBlob.subarray(0, GZIP_HEAD_BYTES);
        buildLayerImage(indexFromZtoc({ ztoc, head, layer: sha256(smallBlob), blobSize: smallBlob.length }));
      } catch (error) {
        if (!(error instanceof LayerError)) throw error;
      }
    };
    take(good);
    const tables = good.length;
    for (let at = 0; at < tables; at += 1 + Math.floor(at / 200)) {
      assert.throws(() => {
        const head = smallBlob.subarray(0, GZIP_HEAD_BYTES);
        indexFromZtoc({ ztoc: good.subarray(0, at), head, layer: sha256(smallBlob), blobSize: smallBlob.length });
      }, LayerError);
    }
    const change = fc.record({ at: fc.nat(Math.min(tables, 6000) - 1), byte: fc.nat(255) });
    fc.assert(
      fc.property(fc.array(change, { minLength: 1, maxLength: 4 }), (changes) => {
        const ztoc = Buffer.from(good);
        for (const { at, byte } of changes) ztoc[at] = byte;
        take(ztoc);
      }),
      { numRuns: 1500 },
    );
  });
});

function changed(change: (parts: ZtocParts, same: ZtocParts) => unknown): ZtocOptions {
  return { change: (parts) => void change(parts, parts) };
}
