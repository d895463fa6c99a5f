/**
 * The last bytes of a zstd:chunked blob: a skippable frame (`50 2a 4d 18`, LE32 size) of little-endian 64-bit numbers.
 *
 * | offset | 40 bytes (before 2023) | 64 bytes (Podman and buildah since) |
 * |---|---|---|
 * | 0 | offset of the manifest | the same |
 * | 8 | its compressed length | the same |
 * | 16 | its length | the same |
 * | 24 | type, 1 | the same |
 * | 32 | magic `GnUlInUx` | offset of the tar-split frame |
 * | 40 | | its compressed length |
 * | 48 | | its length |
 * | 56 | | magic `GNUlInUx` |
 *
 * The manifest is a zstd frame inside a skippable frame, so its skippable header is the 8 bytes before the offset.
 * https://github.com/containers/storage/blob/main/pkg/chunked/internal/minimal/compression.go
 */
export interface ZstdChunkedFooter {
  readonly manifestOffset: number;
  readonly manifestBytes: number;
  readonly manifestDecodedBytes: number;
  readonly footerBytes: 40 | 64;
}

export const SKIPPABLE_HEADER_BYTES = 8;
const SKIPPABLE_MAGIC = 0x184d2a50;
const MAGIC = Buffer.from('GNUlInUx', 'latin1');
const OLD_MAGIC = Buffer.from('GnUlInUx', 'latin1');
const TYPE_CRFS = 1;
const SIZES = [64, 40] as const;

/** @param tail the blob's last bytes, 72 of them at least. undefined where they are no footer. */
export function parseZstdChunkedFooter(tail: Buffer): ZstdChunkedFooter | undefined {
  for (const footerBytes of SIZES) {
    const start = tail.length - footerBytes;
    if (start < SKIPPABLE_HEADER_BYTES) continue;
    const header = start - SKIPPABLE_HEADER_BYTES;
    if (tail.readUInt32LE(header) !== SKIPPABLE_MAGIC || tail.readUInt32LE(header + 4) !== footerBytes) continue;
    const magic = tail.subarray(tail.length - MAGIC.length);
    if (!magic.equals(MAGIC) && !magic.equals(OLD_MAGIC)) continue;
    const position = readPosition(tail.subarray(start));
    if (position !== undefined) return { ...position, footerBytes };
  }
  return undefined;
}

function readPosition(numbers: Buffer): Omit<ZstdChunkedFooter, 'footerBytes'> | undefined {
  const [manifestOffset, manifestBytes, manifestDecodedBytes, type] = [0, 8, 16, 24].map((at) =>
    Number(numbers.readBigUInt64LE(at)),
  );
  if (
    type !== TYPE_CRFS ||
    manifestOffset === undefined ||
    manifestBytes === undefined ||
    manifestDecodedBytes === undefined ||
    !Number.isSafeInteger(manifestOffset + manifestBytes) ||
    !Number.isSafeInteger(manifestDecodedBytes)
  ) {
    return undefined;
  }
  return { manifestOffset, manifestBytes, manifestDecodedBytes };
}

/** `payload` in a frame that every zstd decoder skips. */
export function skippableFrame(payload: Uint8Array): Buffer {
  const header = Buffer.alloc(SKIPPABLE_HEADER_BYTES);
  header.writeUInt32LE(SKIPPABLE_MAGIC, 0);
  header.writeUInt32LE(payload.length, 4);
  return Buffer.concat([header, payload]);
}

/** The current footer, with its skippable header: 72 bytes. A tar-split frame is optional and we write none. */
export function zstdChunkedFooter(manifest: Omit<ZstdChunkedFooter, 'footerBytes'>): Buffer {
  const numbers = Buffer.alloc(64);
  numbers.writeBigUInt64LE(BigInt(manifest.manifestOffset), 0);
  numbers.writeBigUInt64LE(BigInt(manifest.manifestBytes), 8);
  numbers.writeBigUInt64LE(BigInt(manifest.manifestDecodedBytes), 16);
  numbers.writeBigUInt64LE(BigInt(TYPE_CRFS), 24);
  MAGIC.copy(numbers, 56);
  return skippableFrame(numbers);
}
