import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseZstdChunkedFooter, zstdChunkedFooter } from './zstd-chunked-footer.ts';

test('the footer that skopeo 1.9 and ctr-remote 0.14 have written is read', () => {
  const footer = Buffer.from(
    '502a4d1828000000ba010000000000003c010000000000003d030000000000000100000000000000476e556c496e5578',
    'hex',
  );
  assert.deepEqual(parseZstdChunkedFooter(footer), {
    manifestOffset: 442,
    manifestBytes: 316,
    manifestDecodedBytes: 829,
    footerBytes: 40,
  });
});

test('the current footer is read as it was written', () => {
  const position = { manifestOffset: 2 ** 40, manifestBytes: 5, manifestDecodedBytes: 7 };
  const footer = zstdChunkedFooter(position);
  assert.equal(footer.length, 72);
  assert.equal(footer.toString('latin1', 64), 'GNUlInUx');
  assert.deepEqual(parseZstdChunkedFooter(footer), { ...position, footerBytes: 64 });
});

test('other bytes are no footer', () => {
  const footer = zstdChunkedFooter({ manifestOffset: 9, manifestBytes: 5, manifestDecodedBytes: 7 });
  for (const at of [0, 4, 32, 64, 71]) {
    const changed = Buffer.from(footer);
    changed[at] = (changed[at] ?? 0) ^ 0xff;
    assert.equal(parseZstdChunkedFooter(changed), undefined, `byte ${at}`);
  }
  assert.equal(parseZstdChunkedFooter(Buffer.alloc(10)), undefined);
});
