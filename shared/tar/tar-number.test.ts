import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';
import { LayerError } from '#shared/layer/layer-index.ts';
import { fragmentsOfBlock, fragmentsOfNumbers, sparseExtents, SparseMapText } from './sparse-map.ts';
import { decimal, paxTime, tarNumber } from './tar-number.ts';

function refusesOr<T>(read: () => T, check: (value: T) => void): void {
  let value: T;
  try {
    value = read();
  } catch (error) {
    assert.ok(error instanceof LayerError, String(error));
    return;
  }
  check(value);
}

describe('numbers in a tar', () => {
  it('are safe integers or refused, whatever a field holds', () => {
    const field = fc.uint8Array({ minLength: 12, maxLength: 12 });
    fc.assert(
      fc.property(field, fc.constantFrom(undefined, 0x80, 0xff), (bytes, first) => {
        const block = Buffer.from(bytes);
        if (first !== undefined) block[0] = first;
        refusesOr(
          () => tarNumber(block, { at: 0, bytes: 12 }, 'it'),
          (value) => assert.ok(Number.isSafeInteger(value)),
        );
      }),
      { numRuns: 1000 },
    );
    fc.assert(
      fc.property(fc.maxSafeNat(), (wanted) => {
        const octal = Buffer.from(`${wanted.toString(8).padStart(18, '0')} `);
        assert.equal(tarNumber(octal, { at: 0, bytes: octal.length }, 'it'), wanted);
      }),
    );
  });

  it('are decimal numbers and times or refused, whatever the text', () => {
    const text = fc.oneof(fc.string(), fc.stringMatching(/^-?\d{1,20}(\.\d{0,12})?$/));
    fc.assert(
      fc.property(text, (value) => {
        refusesOr(
          () => decimal(value, 'it'),
          (number) => assert.ok(Number.isSafeInteger(number) && number >= 0),
        );
        refusesOr(
          () => paxTime(value),
          ([seconds, nanoseconds]) => {
            assert.ok(Number.isSafeInteger(seconds) && nanoseconds >= 0 && nanoseconds < 1e9);
          },
        );
      }),
      { numRuns: 1000 },
    );
  });
});

describe('the map of a sparse file', () => {
  it('gives extents inside the file and in order, or is refused, whatever it says', () => {
    const number = fc.oneof(fc.nat(50).map(String), fc.constantFrom('', '-1', '9007199254740991', '99999999999999999'));
    fc.assert(
      fc.property(fc.array(number, { maxLength: 8 }), fc.nat(200), fc.nat(200), (numbers, size, stored) => {
        refusesOr(
          () => sparseExtents(fragmentsOfNumbers(numbers), size, stored, 1000),
          (extents) => {
            let end = 0;
            for (const { fileOffset, length } of extents) {
              assert.ok(fileOffset >= end && length > 0);
              end = fileOffset + length;
            }
            assert.ok(end <= size);
            assert.equal(
              extents.reduce((sum, { length }) => sum + length, 0),
              stored,
            );
          },
        );
      }),
      { numRuns: 1000 },
    );
  });

  it('of any text or block is complete, needs more, or is refused', () => {
    const line = fc.oneof(fc.nat(9).map(String), fc.string({ maxLength: 40 }));
    fc.assert(
      fc.property(fc.array(line, { maxLength: 20 }), (lines) => {
        const map = new SparseMapText();
        const text = Buffer.from(lines.map((each) => `${each}\n`).join(''));
        refusesOr(
          () => map.push(text) && map.fragments,
          () => {},
        );
      }),
      { numRuns: 500 },
    );
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 504, maxLength: 504 }), (bytes) => {
        refusesOr(
          () => fragmentsOfBlock(Buffer.from(bytes), 0, 21, []),
          () => {},
        );
      }),
    );
    assert.throws(() => new SparseMapText().push(Buffer.from('99999999\n')), { code: 'too-large' });
  });
});
