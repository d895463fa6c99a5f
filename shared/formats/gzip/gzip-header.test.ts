import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { gunzipSync, gzipSync } from 'node:zlib';
import * as fc from 'fast-check';
import { gzipHeaderLength } from './gzip-header.ts';

const name = fc.uint8Array({ maxLength: 12 }).map((bytes) => bytes.map((byte) => byte || 1));
const optional = <T>(part: fc.Arbitrary<T>) => fc.option(part, { nil: undefined });
/** A header with any of its optional parts. */
const headers = fc
  .record({ extra: optional(fc.uint8Array({ maxLength: 300 })), file: optional(name), comment: optional(name) })
  .map(({ extra, file, comment }) => {
    const flags = (extra ? 4 : 0) | (file ? 8 : 0) | (comment ? 16 : 0);
    const length = Buffer.alloc(2);
    length.writeUInt16LE(extra?.length ?? 0);
    return Buffer.concat([
      Buffer.from([0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 3]),
      ...(extra ? [length, extra] : []),
      ...[file, comment].flatMap((text) => (text ? [text, Buffer.from([0])] : [])),
    ]);
  });

describe('the header of a gzip member', () => {
  it('has the length after which inflating goes on, whatever its optional parts', () => {
    const member = gzipSync('the content');
    fc.assert(
      fc.property(headers, (header) => {
        const blob = Buffer.concat([header, member.subarray(10)]);
        assert.equal(gunzipSync(blob).toString(), 'the content');
        assert.equal(gzipHeaderLength(blob), header.length);
      }),
    );
  });

  it('needs more bytes wherever it is cut', () => {
    fc.assert(
      fc.property(headers, (header) => {
        for (let at = 0; at < header.length; at++) assert.equal(gzipHeaderLength(header.subarray(0, at)), undefined);
      }),
      { numRuns: 30 },
    );
  });

  it('is none, unfinished or inside the bytes, whatever they are', () => {
    const start = fc.constantFrom([], [0x1f], [0x1f, 0x8b], [0x1f, 0x8b, 8]);
    fc.assert(
      fc.property(start, fc.uint8Array({ maxLength: 60 }), (magic, rest) => {
        const bytes = Buffer.from([...magic, ...rest]);
        const length = gzipHeaderLength(bytes);
        if (typeof length === 'number') assert.ok(length >= 10 && length <= bytes.length);
      }),
      { numRuns: 1000 },
    );
  });
});
