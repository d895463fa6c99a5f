import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';
import { LayerError } from '#shared/layer/layer-index.ts';
import { parsePaxRecords, paxXattrs } from './pax-records.ts';

const key = fc.stringMatching(/^[A-Za-z.]{1,20}$/).filter((text) => !text.startsWith('GNU.sparse'));
const values = fc.uniqueArray(fc.tuple(key, fc.uint8Array({ maxLength: 200 })), { maxLength: 5, selector: ([k]) => k });

function recordOf(name: string, value: Uint8Array): Buffer {
  const rest = Buffer.concat([Buffer.from(` ${name}=`), value, Buffer.from('\n')]);
  let length = rest.length;
  while (String(length).length + rest.length !== length) length = String(length).length + rest.length;
  return Buffer.concat([Buffer.from(String(length)), rest]);
}

/** @returns whether they were read */
function reads(body: Buffer): boolean {
  try {
    for (const [name, value] of parsePaxRecords(body).values) assert.ok(name !== '' && value.length < body.length);
    return true;
  } catch (error) {
    assert.ok(error instanceof LayerError && error.code === 'malformed', String(error));
    return false;
  }
}

describe('records of a PAX header', () => {
  it('come out as they were put in, values of any bytes', () => {
    fc.assert(
      fc.property(values, (pairs) => {
        const body = Buffer.concat(pairs.map(([name, value]) => recordOf(name, value)));
        const read = [...parsePaxRecords(body).values].map(([name, value]) => [name, new Uint8Array(value)]);
        assert.deepEqual(
          read,
          pairs.map(([name, value]) => [name, new Uint8Array(value)]),
        );
      }),
    );
  });

  it('are refused where one is cut, and refused or others where bytes are changed', () => {
    const one = recordOf('SCHILY.xattr.user.x', Buffer.from([0, 10, 61, 255, 32]));
    assert.equal(paxXattrs(parsePaxRecords(one)).length, 1);
    for (let at = 1; at < one.length; at++) assert.equal(reads(one.subarray(0, at)), false, `cut at ${at}`);
    const body = Buffer.concat([one, recordOf('path', Buffer.from('a/b')), recordOf('size', Buffer.from('12'))]);
    fc.assert(
      fc.property(fc.nat(body.length - 1), fc.nat(255), (at, byte) => {
        const changed = Buffer.from(body);
        changed[at] = byte;
        reads(changed);
      }),
      { numRuns: 500 },
    );
  });

  it('are read or refused, whatever the bytes, and in one pass', () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 100 }), (bytes) => void reads(Buffer.from(bytes))));
    // Lengths that go nowhere, or further than there is.
    for (const text of ['0 a=b\n', '00000000 a=b\n', '1 a=b\n', '99999999 a=b\n', '6 =ab\n', '12345678901 a=b\n']) {
      assert.equal(reads(Buffer.from(text)), false, text);
    }
  });
});
