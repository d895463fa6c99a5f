/** Decoded bytes of a block at most. */
const BLOCK_BYTES = 128 * 1024;

/** For tests: a zstd frame that decodes to so many zeros, four bytes for each 128 KiB (RFC 8878, RLE blocks). */
export function zstdBomb(decodedBytes: number): Buffer {
  const count = Math.ceil(decodedBytes / BLOCK_BYTES);
  // Magic; no checksum, no content size; a window of 2 MiB.
  const header = Buffer.from('28b52ffd0058', 'hex');
  const blocks = Buffer.alloc(count * 4);
  for (let i = 0; i < count; i++) blocks.writeUIntLE((BLOCK_BYTES << 3) | 2 | (i === count - 1 ? 1 : 0), i * 4, 3);
  return Buffer.concat([header, blocks]);
}
