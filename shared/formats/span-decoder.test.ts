import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { zstdCompressSync } from 'node:zlib';
import { sha256 } from '#shared/digest/digest.ts';
import { LayerError } from '#shared/layer/layer-index.ts';
import { type SpanCoding, SpanDecoder } from './span-decoder.ts';

const payload = Buffer.concat([Buffer.alloc(70_000, 'some text that repeats itself. '), randomBytes(5_000)]);

/** A layer of one span, whose payload is all of it. */
const map: SpanCoding = {
  layer: sha256(Buffer.from('layer')),
  format: 'gzip',
  blobStart: () => 0,
  blobEnd: () => 100,
  decodedLength: () => payload.length,
  payloadLength: () => payload.length,
  extents: () => [{ decodedOffset: 0, imageOffset: 4096, length: payload.length }],
  segments: () => [],
  pieces: () => [{ length: payload.length, digest: createHash('sha256').update(payload).digest() }],
  checkpoint: () => undefined,
};

test('a span that a peer has packed is unpacked and verified, one after another by the same decoder', () => {
  using decoder = new SpanDecoder();
  for (let i = 0; i < 3; i++) {
    const unpacked = decoder.decode(map, 0, { form: 'packed', bytes: zstdCompressSync(payload) });
    assert.deepEqual(Buffer.from(unpacked), payload);
    assert.throws(
      () => decoder.decode(map, 0, { form: 'packed', bytes: zstdCompressSync(payload).subarray(0, -9) }),
      LayerError,
    );
  }
});

test('a packed span that is cut short, of other bytes, no zstd or of more bytes than the span has is refused', () => {
  using decoder = new SpanDecoder();
  const other = Buffer.from(payload);
  other[60_000] = 0;
  for (const bytes of [
    zstdCompressSync(payload.subarray(0, -1)),
    zstdCompressSync(other),
    zstdCompressSync(Buffer.alloc(64 * 1024 * 1024)),
    randomBytes(1000),
    Buffer.alloc(0),
  ]) {
    assert.throws(() => decoder.decode(map, 0, { form: 'packed', bytes }), LayerError);
  }
});
