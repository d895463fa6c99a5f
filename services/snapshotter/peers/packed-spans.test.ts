import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { zstdDecompressSync } from 'node:zlib';
import { sha256 } from '#shared/digest/digest.ts';
import { PackedSpans } from './packed-spans.ts';

const layer = sha256(Buffer.from('layer'));
const limits = { bytes: 1000, idleMs: 60_000 };

test('a span is packed once for all who ask, and is its payload again when unpacked', async () => {
  using packed = new PackedSpans();
  const content = Buffer.alloc(100_000, 'one line after another\n');
  let reads = 0;
  const read = () => {
    reads++;
    return Promise.resolve(Uint8Array.from(content));
  };
  const [first, second] = await Promise.all([packed.get(layer, 1, read), packed.get(layer, 1, read)]);
  const third = await packed.get(layer, 1, read);
  assert.equal(reads, 1);
  assert.ok(first !== undefined && first.length < content.length / 2);
  assert.equal(second, first);
  assert.equal(third, first);
  assert.deepEqual(zstdDecompressSync(first), content);
});

test('what packing does not make smaller goes as it is, and is not tried again', async () => {
  using packed = new PackedSpans();
  let reads = 0;
  const read = () => {
    reads++;
    return Promise.resolve(Uint8Array.from(randomBytes(50_000)));
  };
  assert.equal(await packed.get(layer, 1, read), undefined);
  assert.equal(await packed.get(layer, 1, read), undefined);
  assert.equal(reads, 1);
  assert.equal(await packed.get(layer, 2, () => Promise.resolve(undefined)), undefined);
});

test('what came packed is handed on, and what was used longest ago goes first', async () => {
  using packed = new PackedSpans(limits);
  const none = () => Promise.resolve(undefined);
  const [a, b, c] = [new Uint8Array(400), new Uint8Array(400), new Uint8Array(400)];
  packed.keep(layer, 1, a);
  packed.keep(layer, 2, b);
  assert.equal(await packed.get(layer, 1, none), a);
  packed.keep(layer, 3, c);
  assert.equal(await packed.get(layer, 2, none), undefined);
  assert.equal(await packed.get(layer, 1, none), a);
  packed.keep(layer, 4, new Uint8Array(2000));
  assert.equal(packed.bytes, 800);
});
