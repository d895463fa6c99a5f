import { DecodeError, type SyncDecoder } from '#shared/formats/sync-decoder.ts';
import { WINDOW_BYTES } from '#shared/layer/packed-checkpoint.ts';

/**
 * Taking a deflate stream up at any bit with a decoder that begins at bytes.
 *
 * In front of the stream go blocks that decode to nothing and whose bits end where the stream's first bit is:
 *
 * - an empty block with fixed codes: 10 bits (final `0`, type `01`, end-of-block `0000000`), an even length;
 * - for odd positions first one block with dynamic codes that holds only end-of-block: 95 bits, an odd length.
 *
 * Deflate packs bits from the low end of each byte (RFC 1951, 3.1.1), so a stream of which `bits` high-order bits of a byte are left
 * begins at bit `8 - bits` of it.
 */
const FIXED_BLOCK = [0, 1, 0, 0, 0, 0, 0, 0, 0, 0];

/**
 * HLIT 257, HDIST 1, HCLEN 19. Code lengths in the code-length alphabet's order (16 17 18 0 8 7 9 6 10 5 11 4 12 3 13 2 14 1 15): 18 and 1 have one
 * bit each (18 is coded 1, 1 is coded 0). Literal lengths: 138 and 118 zeros, then a 1 for symbol 256; distance length: a 1.
 */
function dynamicBlock(): readonly number[] {
  const bits: number[] = [];
  const push = (value: number, count: number): void => {
    for (let bit = 0; bit < count; bit += 1) bits.push((value >> bit) & 1);
  };
  push(0, 1);
  push(2, 2);
  push(0, 5);
  push(0, 5);
  push(15, 4);
  for (const symbol of [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15]) {
    push(symbol === 18 || symbol === 1 ? 1 : 0, 3);
  }
  push(1, 1);
  push(138 - 11, 7);
  push(1, 1);
  push(118 - 11, 7);
  push(0, 1);
  push(0, 1);
  push(0, 1);
  return bits;
}

const DYNAMIC_BLOCK = dynamicBlock();

function prefixBits(bits: number): readonly number[] {
  const position = (8 - bits) % 8;
  const prefix: number[] = position % 2 === 1 ? [...DYNAMIC_BLOCK] : [];
  while (prefix.length % 8 !== position) prefix.push(...FIXED_BLOCK);
  return prefix;
}

const PREFIXES = [0, 1, 2, 3, 4, 5, 6, 7].map((bits) => prefixBits(bits));

/**
 * The bytes to feed in front of the rest: for `bits` 1-7 they include the first byte of the stream, whose low-order bits are
 * replaced; for 0 there are none.
 */
function resumePrefix(bits: number, firstByte: number): Buffer {
  const prefix = PREFIXES[bits] ?? [];
  const bytes = Buffer.alloc(Math.ceil(prefix.length / 8));
  for (let index = 0; index < prefix.length; index += 1) {
    if (prefix[index] === 1) bytes[index >> 3] = (bytes[index >> 3] ?? 0) | (1 << (index & 7));
  }
  if (bits > 0) {
    const last = bytes.length - 1;
    bytes[last] = (bytes[last] ?? 0) | (firstByte & (0xff << (8 - bits)) & 0xff);
  }
  return bytes;
}

const STORED_HEADER = Buffer.alloc(5);
const DISCARDED = Buffer.alloc(WINDOW_BYTES);

/**
 * Brings a decoder for raw deflate to a checkpoint: the window goes in as a stored block (whose header is `00`, LE16 length and its
 * complement) rather than as a dictionary, so that one decoder serves for all.
 *
 * @param firstByte of the range; where `bits` > 0 it is used up, and what it decodes to is put into `output`, at most `length` bytes.
 * @returns the bytes put there
 * @throws DecodeError
 */
export function resumeDeflate(
  decoder: SyncDecoder,
  window: Uint8Array,
  bits: number,
  firstByte: number,
  output: Buffer,
  length: number,
): number {
  decoder.reset();
  if (window.length > WINDOW_BYTES) throw new DecodeError(`a window of ${window.length} bytes`);
  if (window.length > 0) {
    STORED_HEADER.writeUInt16LE(window.length, 1);
    STORED_HEADER.writeUInt16LE(window.length ^ 0xffff, 3);
    decoder.write(STORED_HEADER, 0, STORED_HEADER.length, DISCARDED, 0, WINDOW_BYTES);
    decoder.write(window, 0, window.length, DISCARDED, 0, WINDOW_BYTES);
  }
  const prefix = resumePrefix(bits, firstByte);
  if (prefix.length === 0) return 0;
  decoder.write(prefix, 0, prefix.length, output, 0, length);
  return decoder.produced;
}
