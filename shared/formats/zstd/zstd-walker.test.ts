import assert from 'node:assert/strict';
import { test } from 'node:test';
import { zstdBomb } from './fake-bomb.ts';
import { ZstdWalker } from './zstd-walker.ts';

test('a zstd blob of some KB that decodes to gigabytes is refused inside its bound, however it is pushed', () => {
  const bomb = zstdBomb(8 * 1024 ** 3);
  assert.ok(bomb.length < 300_000);
  const buffer = Buffer.alloc(256 * 1024);
  let decoded = 0;
  const sink = {
    buffer: () => buffer,
    data: (_: Buffer, length: number) => {
      decoded += length;
    },
    cut: () => {},
    amend: () => {},
  };
  using walker = new ZstdWalker(sink);
  assert.throws(() => walker.push(bomb), { name: 'LayerError', code: 'too-large' });
  assert.ok(decoded < 5 * 1024 ** 3, `${decoded} bytes`);
});
