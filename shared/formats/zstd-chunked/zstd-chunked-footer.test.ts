import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
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

test('a footer that is cut anywhere is none, and one that was changed is none or says numbers that can be used', () => {
  const footer = zstdChunkedFooter({ manifestOffset: 2 ** 33, manifestBytes: 500, manifestDecodedBytes: 700 });
  for (let at = 0; at < footer.length; at++) {
    assert.equal(parseZstdChunkedFooter(footer.subarray(0, at)), undefined, `cut at ${at}`);
    assert.equal(parseZstdChunkedFooter(footer.subarray(at + 1)), undefined, `without the first ${at + 1}`);
  }
  const usable = (bytes: Buffer): void => {
    const { manifestOffset = 0, manifestBytes = 0, manifestDecodedBytes = 0 } = parseZstdChunkedFooter(bytes) ?? {};
    for (const number of [manifestOffset, manifestBytes, manifestDecodedBytes]) {
      assert.ok(Number.isSafeInteger(number) && number >= 0);
    }
  };
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.nat(footer.length - 1), fc.nat(255)), { maxLength: 6 }), (changes) => {
      const changed = Buffer.from(footer);
      for (const [at, byte] of changes) changed[at] = byte;
      usable(changed);
    }),
    { numRuns: 500 },
  );
  fc.assert(fc.property(fc.uint8Array({ maxLength: 100 }), (bytes) => usable(Buffer.from(bytes))));
});
