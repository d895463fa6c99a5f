import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { gunzipSync } from 'node:zlib';
import * as fc from 'fast-check';
import { ESTARGZ_FOOTER_BYTES, estargzFooter, parseEstargzFooter } from './estargz-footer.ts';

/** As producers have written them (reference: estargz.md). */
const LEGACY = Buffer.from(`1f8b08040000000000ff1600${hex('00000000000004d2STARGZ')}010000ffff0000000000000000`, 'hex');
const EXTERNAL = Buffer.from(
  `1f8b08040000000000ff1500${hex('SG\x11\0STARGZEXTERNALTOC')}010000ffff0000000000000000`,
  'hex',
);

describe('the footer of eStargz', () => {
  it('is an empty gzip member that gives its offset back', () => {
    fc.assert(
      fc.property(fc.maxSafeNat(), fc.uint8Array({ maxLength: 30 }), (tocOffset, before) => {
        const footer = estargzFooter(tocOffset);
        assert.equal(footer.length, ESTARGZ_FOOTER_BYTES);
        assert.equal(gunzipSync(footer).length, 0);
        assert.deepEqual(parseEstargzFooter(Buffer.concat([before, footer])), {
          kind: 'estargz',
          tocOffset,
          footerBytes: ESTARGZ_FOOTER_BYTES,
        });
      }),
    );
  });

  it('is known in the legacy form and in the one whose TOC lies elsewhere', () => {
    const before = Buffer.alloc(10);
    assert.deepEqual(parseEstargzFooter(Buffer.concat([before, LEGACY])), {
      kind: 'legacy',
      tocOffset: 1234,
      footerBytes: 47,
    });
    assert.deepEqual(parseEstargzFooter(Buffer.concat([before, EXTERNAL])), { kind: 'external', footerBytes: 46 });
  });

  it('is none when it is cut anywhere, and none or another one when a byte is changed', () => {
    for (const footer of [estargzFooter(987_654), LEGACY, EXTERNAL]) {
      for (let at = 0; at < footer.length; at++) {
        assert.equal(parseEstargzFooter(footer.subarray(0, at)), undefined, `cut at ${at}`);
        assert.equal(parseEstargzFooter(footer.subarray(at + 1)), undefined, `without the first ${at + 1}`);
        for (const flip of [1, 0x20, 0x80, 0xff]) {
          const changed = Buffer.from(footer);
          changed[at] = (changed[at] ?? 0) ^ flip;
          const parsed = parseEstargzFooter(changed);
          if (parsed !== undefined && parsed.kind !== 'external') assert.ok(Number.isSafeInteger(parsed.tocOffset));
        }
      }
    }
  });

  it('is not found among any other bytes, nor beyond what a number can hold', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 120 }), (bytes) => {
        assert.equal(parseEstargzFooter(Buffer.from(bytes)), undefined);
      }),
    );
    const huge = estargzFooter(1);
    huge.write('ffffffffffffffff', 16, 'latin1');
    assert.equal(parseEstargzFooter(huge), undefined);
  });
});

function hex(text: string): string {
  return Buffer.from(text, 'latin1').toString('hex');
}
