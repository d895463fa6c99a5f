import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { describe, it } from 'node:test';
import { zstdCompressSync } from 'node:zlib';
import * as fc from 'fast-check';
import { type Digest, sha256 } from '#shared/digest/digest.ts';
import { fakeEntry, fakeMember, fakeTar, indexOfTar } from './fake-layer.ts';
import { decodeLayerIndex, encodeLayerIndex } from './index-codec.ts';
import { buildLayerImage } from './layer-image.ts';
import type { Extent, LayerEntry, LayerFormat, LayerIndex } from './layer-index.ts';
import { LayerError, type LayerErrorCode } from './layer-index.ts';

const LAYER = sha256(Buffer.from('layer'));

function refuses(bytes: Uint8Array, code: LayerErrorCode, layer: Digest = LAYER): void {
  assert.throws(
    () => decodeLayerIndex(bytes, layer),
    (error) => error instanceof LayerError && error.code === code,
  );
}

/** Makes the trailer right for changed bytes: an attacker can. */
function sealed(bytes: Buffer): Buffer {
  const body = bytes.subarray(0, bytes.length - 32);
  return Buffer.concat([body, createHash('sha256').update(body).digest()]);
}

const bytes = (max: number) => fc.uint8Array({ maxLength: max }).map((array) => Buffer.from(array));
const entries: fc.Arbitrary<LayerEntry[]> = fc
  .array(
    fc.record({
      path: bytes(20),
      type: fc.constantFrom('file', 'directory', 'symlink', 'hardlink', 'character', 'block', 'fifo' as const),
      mode: fc.nat(0o7777),
      uid: fc.nat(2 ** 32 - 2),
      mtimeSeconds: fc.integer({ min: -(2 ** 40), max: 2 ** 40 }),
      mtimeNanoseconds: fc.nat(999_999_999),
      linkName: bytes(10),
      device: fc.nat(1000),
      xattrs: fc.array(fc.tuple(bytes(5), bytes(9)), { maxLength: 2 }),
      runs: fc.array(fc.tuple(fc.nat(100), fc.nat(1e12), fc.integer({ min: 1, max: 1e9 })), { maxLength: 3 }),
      tail: fc.nat(2),
    }),
    { maxLength: 12 },
  )
  .map((list) => {
    let streamEnd = 0;
    return list.map(({ runs, tail, device, linkName, type, ...rest }) => {
      const extents: Extent[] = [];
      let size = 0;
      for (const [gap, hole, length] of type === 'file' ? runs : []) {
        extents.push({ fileOffset: size + hole, streamOffset: streamEnd + gap, length });
        size += hole + length;
        streamEnd += gap + length;
      }
      const link = type === 'symlink' || type === 'hardlink';
      const special = type === 'character' || type === 'block';
      return fakeEntry(rest.path, type, {
        ...rest,
        size: type === 'file' ? size + tail : 0,
        linkName: link ? linkName : '',
        deviceMajor: special ? device : 0,
        deviceMinor: special ? device * 7 : 0,
        extents,
      });
    });
  });

const plain = { noNullPrototype: true };
const indexes: fc.Arbitrary<LayerIndex> = fc.record(
  {
    layer: fc.constant(LAYER),
    blobSize: fc.maxSafeNat(),
    diffId: fc.option(fc.constant(sha256(Buffer.from('diff'))), { nil: undefined }),
    format: fc.constantFrom<LayerFormat[]>('estargz', 'zstd-chunked', 'gzip', 'zstd', 'tar'),
    entries,
    spans: fc.array(
      fc
        .record(
          {
            segments: fc.array(
              fc.record(
                {
                  blobOffset: fc.nat(2 ** 40),
                  blobLength: fc.nat(2 ** 30),
                  skip: fc.nat(1000),
                  length: fc.nat(5_000_000),
                },
                plain,
              ),
              { maxLength: 3 },
            ),
            pieces: fc.array(fc.record({ length: fc.nat(2 ** 30), digest: fc.constant(LAYER) }, plain), {
              maxLength: 3,
            }),
            checkpoint: fc.option(fc.record({ bits: fc.nat(7), packedWindow: bytes(50) }, plain), { nil: undefined }),
          },
          plain,
        )
        .map((span) => ({ ...span, streamLength: span.segments.reduce((sum, { length }) => sum + length, 0) })),
      { maxLength: 6 },
    ),
    prioritySpans: fc.nat(10),
  },
  plain,
);

describe('the index codec', () => {
  it('gives back every index, and the same bytes for the same index', () => {
    fc.assert(
      fc.property(indexes, (index) => {
        const file = encodeLayerIndex(index);
        const decoded = decodeLayerIndex(file, LAYER);
        assert.deepEqual(decoded, index);
        assert.deepEqual(encodeLayerIndex(decoded), file);
      }),
      { numRuns: 150 },
    );
  });

  it('refuses every changed byte, every cut, and the index of another layer', () => {
    const tar = fakeTar([fakeMember('a', 'file', 'abc'), fakeMember('b', 'symlink', '', { linkName: 'a' })]);
    const index = indexOfTar(tar, 512);
    const file = encodeLayerIndex(index);
    for (let at = 0; at < file.length; at++) {
      const changed = Buffer.from(file);
      changed[at] = (changed[at] ?? 0) ^ 0x41;
      assert.throws(() => decodeLayerIndex(changed, index.layer), LayerError);
      assert.throws(() => decodeLayerIndex(file.subarray(0, at), index.layer), LayerError);
    }
    refuses(file, 'digest-mismatch');
  });

  it('gives an image or a LayerError, even where the trailer fits the changed bytes', () => {
    fc.assert(
      fc.property(indexes, fc.nat(), fc.nat(255), fc.boolean(), (index, position, byte, cut) => {
        const file = encodeLayerIndex(index);
        const at = position % (file.length - 32);
        const changed = cut ? Buffer.concat([file.subarray(0, at), file.subarray(-32)]) : Buffer.from(file);
        if (!cut) changed[at] = byte;
        try {
          buildLayerImage(decodeLayerIndex(sealed(changed), LAYER));
        } catch (error) {
          assert.ok(error instanceof LayerError, String(error));
        }
      }),
      { numRuns: 500 },
    );
  });

  it('fails with a LayerError only, whatever the body decompresses to', () => {
    const { length } = encodeLayerIndex({ ...indexOfTar(fakeTar([]), 512), layer: LAYER });
    assert.ok(length < 200);
    fc.assert(
      fc.property(indexes, fc.nat(), fc.nat(255), (index, position, byte) => {
        const file = encodeLayerIndex({ ...index, spans: [] });
        assert.doesNotThrow(() => decodeLayerIndex(file, LAYER));
        const body = Buffer.alloc(file.readUInt32LE(12), byte);
        body[position % body.length] = position % 256;
        refusesOrReads(rebuilt(file, body));
      }),
      { numRuns: 300 },
    );
  });

  it('allocates nothing for bombs', () => {
    const file = encodeLayerIndex({ ...indexOfTar(fakeTar([]), 512), layer: LAYER });
    const bomb = rebuilt(file, Buffer.alloc(64 * 1024 * 1024));
    bomb.writeUInt32LE(1000, 12);
    refuses(sealed(bomb), 'malformed');
    const claim = Buffer.from(file);
    claim.writeUInt32LE(0xffff_ffff, 12);
    refuses(sealed(claim), 'too-large');
    // Two million entries in a body of some bytes.
    refuses(rebuilt(file, Buffer.from([4, 0, 0, 0, 0x80, 0x89, 0x7a, 0, ...Array<number>(17).fill(0)])), 'malformed');
  });
});

function rebuilt(file: Buffer, body: Buffer): Buffer {
  const packed = zstdCompressSync(body);
  const header = Buffer.from(file.subarray(0, 64));
  header.writeUInt32LE(body.length, 12);
  header.writeUInt32LE(packed.length, 16);
  header.writeUInt32LE(0, 20);
  return sealed(Buffer.concat([header, packed, Buffer.alloc(32)]));
}

function refusesOrReads(file: Buffer): void {
  try {
    decodeLayerIndex(file, LAYER);
  } catch (error) {
    assert.ok(error instanceof LayerError, String(error));
  }
}
