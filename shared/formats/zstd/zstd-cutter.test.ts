import assert from 'node:assert/strict';
import { test } from 'node:test';
import { zstdCompressSync } from 'node:zlib';
import * as fc from 'fast-check';
import { ZstdCutter, type CutSpan } from './zstd-cutter.ts';

const CONTENT = Buffer.alloc(300_000).map((_, at) => (at * 13 + (at >> 7) * (at % 5)) & 0xff);

function cut(blob: Buffer, lengths: readonly number[], piece: number): CutSpan[] {
  using cutter = new ZstdCutter(lengths);
  const spans: CutSpan[] = [];
  for (let at = 0; at < blob.length && !cutter.done; at += piece) {
    spans.push(...cutter.push(blob.subarray(at, at + piece)));
  }
  return spans;
}

test('a stream is cut at the given lengths, however it is framed and however its bytes come', () => {
  const lengths = fc.array(fc.integer({ min: 1, max: 60_000 }), { minLength: 1, maxLength: 5 });
  const frames = fc.array(fc.integer({ min: 0, max: 100_000 }), { minLength: 0, maxLength: 3 });
  fc.assert(
    fc.property(lengths, frames, fc.integer({ min: 1, max: 5_000 }), (wanted, cuts, piece) => {
      const borders = [0, ...cuts.toSorted((a, b) => a - b), CONTENT.length];
      const blob = Buffer.concat([
        ...borders.slice(1).map((end, i) => zstdCompressSync(CONTENT.subarray(borders[i], end))),
        Buffer.from('what follows does not matter'),
      ]);
      const spans = cut(blob, wanted, piece);
      const total = wanted.reduce((sum, length) => sum + length, 0);
      assert.deepEqual(
        spans.map(({ bytes }) => bytes.length),
        wanted,
      );
      assert.ok(Buffer.concat(spans.map(({ bytes }) => bytes)).equals(CONTENT.subarray(0, total)));
      const read = spans.reduce((sum, { blobBytes }) => sum + blobBytes, 0);
      assert.ok(read > 0 && read <= blob.length);
    }),
    { numRuns: 25 },
  );
});

test('bytes that are no zstd are refused, and a stream that ends early gives no more than it has', () => {
  const blob = zstdCompressSync(CONTENT);
  assert.equal(cut(blob.subarray(0, blob.length >> 1), [10, CONTENT.length - 10], 1000).length, 1);
  assert.throws(() => cut(Buffer.alloc(100, 7), [10], 10), { name: 'LayerError', code: 'malformed' });
});
