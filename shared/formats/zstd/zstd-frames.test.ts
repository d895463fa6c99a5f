import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import * as fc from 'fast-check';
import { DecodeError } from '#shared/formats/sync-decoder.ts';
import { ZstdFrames } from './zstd-frames.ts';

const checksum = { params: { [constants.ZSTD_c_checksumFlag]: 1 } };
/** One with a checksum, one of a repeated byte, one that is skipped, one of several blocks, one that is empty. */
const FRAMES = [
  zstdCompressSync('checked', checksum),
  zstdCompressSync(Buffer.alloc(300_000, 7)),
  Buffer.from('502a4d180500000001020304ff', 'hex'),
  zstdCompressSync(Buffer.from(Array.from({ length: 200_000 }, (_, i) => (i * i) >> 3))),
  zstdCompressSync(''),
];
const STREAM = Buffer.concat(FRAMES);

/** The frames that are found in pieces of a stream, skipped ones left out. */
function framesOf(pieces: readonly Buffer[]): Buffer[] {
  const walker = new ZstdFrames();
  const found: Buffer[] = [];
  let open: Buffer[] = [];
  let end = 0;
  for (const piece of pieces) {
    for (const part of walker.push(piece)) {
      assert.ok(part.offset >= end, 'parts come in order');
      end = part.offset + part.bytes.length;
      open.push(Buffer.from(part.bytes));
      if (!part.isLast) continue;
      found.push(Buffer.concat(open));
      open = [];
    }
  }
  walker.end();
  return found;
}

describe('the frames of a zstd stream', () => {
  const wanted = FRAMES.filter((_, i) => i !== 2);

  it('are found wherever the stream is split', () => {
    assert.deepEqual(framesOf([STREAM]), wanted);
    fc.assert(
      fc.property(fc.array(fc.nat(STREAM.length), { maxLength: 12 }), (cuts) => {
        const at = [0, ...cuts.toSorted((a, b) => a - b), STREAM.length];
        assert.deepEqual(framesOf(at.slice(1).map((end, i) => STREAM.subarray(at[i], end))), wanted);
      }),
    );
    const bytes = Array.from(FRAMES[0] ?? [], (byte) => Buffer.from([byte]));
    assert.deepEqual(framesOf(bytes), wanted.slice(0, 1));
  });

  it('do not end where the stream is cut', () => {
    const short = Buffer.concat([FRAMES[0] ?? Buffer.alloc(0), FRAMES[2] ?? Buffer.alloc(0)]);
    for (let at = 1; at < short.length; at++) {
      if (at === FRAMES[0]?.length) continue;
      assert.throws(() => framesOf([short.subarray(0, at)]), DecodeError, `cut at ${at}`);
    }
  });

  it('are refused or are other frames when bytes are changed, and nothing else', () => {
    fc.assert(
      fc.property(fc.nat(STREAM.length - 1), fc.integer({ min: 1, max: 255 }), (at, flip) => {
        const changed = Buffer.from(STREAM);
        changed[at] = (changed[at] ?? 0) ^ flip;
        try {
          for (const frame of framesOf([changed])) assert.ok(frame.length >= 5 && frame.length <= changed.length);
        } catch (error) {
          assert.ok(error instanceof DecodeError, String(error));
        }
      }),
      { numRuns: 500 },
    );
    assert.equal(zstdDecompressSync(wanted[0] ?? Buffer.alloc(0)).toString(), 'checked');
  });
});
