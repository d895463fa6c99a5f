import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { constants, gzipSync, zstdCompressSync } from 'node:zlib';
import * as fc from 'fast-check';
import { layerTar } from './layer-tar.ts';

const signal = new AbortController().signal;

async function* cut(blob: Buffer, size: number): AsyncGenerator<Buffer> {
  for (let at = 0; at < blob.length; at += size) yield blob.subarray(at, at + size);
}

async function decoded(blob: Buffer, size = 65_536): Promise<Buffer> {
  const parts: Buffer[] = [];
  for await (const chunk of layerTar(cut(blob, size), signal)) parts.push(chunk);
  return Buffer.concat(parts);
}

function skippable(length: number): Buffer {
  const frame = Buffer.alloc(8 + length, 0xaa);
  frame.writeUInt32LE(0x184d2a50, 0);
  frame.writeUInt32LE(length, 4);
  return frame;
}

const noise = Buffer.concat([randomBytes(200_000), Buffer.alloc(300_000, 'abc')]);

test('a layer is decompressed as its first bytes say', async () => {
  assert.deepEqual(await decoded(noise), noise);
  assert.deepEqual(await decoded(gzipSync(noise)), noise);
  assert.deepEqual(await decoded(zstdCompressSync(noise)), noise);
  assert.deepEqual(await decoded(Buffer.alloc(0)), Buffer.alloc(0));
  assert.deepEqual(await decoded(Buffer.from('ab')), Buffer.from('ab'));
});

test('members and frames may follow each other, with skippable frames between, cut anywhere', async () => {
  const checked = { params: { [constants.ZSTD_c_checksumFlag]: 1 } };
  const [a, b, c] = [randomBytes(999), Buffer.alloc(50_000, 'x'), Buffer.alloc(0)];
  const gzip = Buffer.concat([a, b, c].map((part) => gzipSync(part)));
  const frames = [skippable(0), zstdCompressSync(a, checked), skippable(77), zstdCompressSync(b), zstdCompressSync(c)];
  const zstd = Buffer.concat([...frames, skippable(9)]);
  await fc.assert(
    fc.asyncProperty(fc.integer({ min: 1, max: 2000 }), async (size) => {
      assert.deepEqual(await decoded(gzip, size), Buffer.concat([a, b]));
      assert.deepEqual(await decoded(zstd, size), Buffer.concat([a, b]));
    }),
    { numRuns: 20, examples: [[1], [3]] },
  );
});

test('what is cut short or damaged is an error, and so is an error of the source', async () => {
  for (const whole of [gzipSync(noise), zstdCompressSync(noise)]) {
    await assert.rejects(decoded(whole.subarray(0, -5)), { name: 'ConvertError', code: 'malformed' });
    await assert.rejects(decoded(Buffer.concat([whole.subarray(0, 30), randomBytes(5000)])), { name: 'ConvertError' });
    async function* failing(): AsyncGenerator<Buffer> {
      yield whole.subarray(0, 1000);
      throw new Error('connection on fire');
    }
    await assert.rejects(async () => {
      for await (const _ of layerTar(failing(), signal));
    }, /connection on fire/);
  }
});

test('a reader that stops early ends the source', async () => {
  let isEnded = false;
  async function* endless(): AsyncGenerator<Buffer> {
    try {
      const chunk = gzipSync(noise);
      for (;;) yield chunk;
    } finally {
      isEnded = true;
    }
  }
  for await (const _ of layerTar(endless(), signal)) break;
  assert.ok(isEnded);
});
