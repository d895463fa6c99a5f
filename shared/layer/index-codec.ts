import { createHash } from 'node:crypto';
import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import { bytesOf, type Digest, digestOfBytes } from '#shared/digest/digest.ts';
import { decodeEntries, encodeEntries } from './entry-columns.ts';
import { LAYER_LIMITS, LayerError, type LayerFormat, type LayerIndex } from './layer-index.ts';
import { decodeSpans, encodeSpans } from './span-columns.ts';
import { VarintReader } from './varint-reader.ts';
import { VarintWriter } from './varint-writer.ts';

const MAGIC = Buffer.from('KNDLIDX\0', 'latin1');
export const INDEX_VERSION = 2;
const HEADER_BYTES = 64;
const TRAILER_BYTES = 32;
/** Within 1 % of what higher levels reach, in a fraction of their time; part of the format, for the same index must give the same bytes. */
const LEVEL = 9;
/** Without `soci`: such an index is as good as its maker and verifies less, so it is never handed on. */
const FORMATS: readonly LayerFormat[] = ['estargz', 'zstd-chunked', 'gzip', 'zstd', 'tar'];

/**
 * The index as one file, little-endian. The same index gives the same bytes wherever zstd is of the same version.
 *
 *   0  magic[8]   8 u32 version   12 u32 bytes of the body, 16 u32 compressed   20 u32 bytes of the windows   24 u64 zero
 *  32  layer digest[32]   64 body, a zstd frame   then the windows, each a zstd frame   then sha256[32] of all before it
 *
 * The body: varints of format, blob size and priority spans, 0 or 1 and the diff ID's 32 bytes, then the columns of entries
 * (`entry-columns.ts`) and of spans (`span-columns.ts`).
 *
 * @throws LayerError `malformed` when the index contradicts itself, `too-large`.
 */
export function encodeLayerIndex(index: LayerIndex): Buffer {
  const format = FORMATS.indexOf(index.format);
  if (format < 0)
    throw new LayerError('unsupported', `Cannot encode an index of ${index.layer} made from a ${index.format} index`);
  const out = new VarintWriter();
  out.whole(format);
  out.whole(index.blobSize);
  out.whole(index.prioritySpans);
  out.whole(index.diffId === undefined ? 0 : 1);
  if (index.diffId !== undefined) out.bytes(bytesOf(index.diffId));
  encodeEntries(index.entries, out);
  const windows = encodeSpans(index.spans, out);
  const windowBytes = windows.reduce((sum, { length }) => sum + length, 0);
  checkSize(out.length + windowBytes);
  const body = compressed(out.written);
  const header = Buffer.alloc(HEADER_BYTES);
  MAGIC.copy(header, 0);
  [INDEX_VERSION, out.length, body.length, windowBytes].forEach((word, i) => header.writeUInt32LE(word, 8 + 4 * i));
  bytesOf(index.layer).copy(header, 32);
  const file = Buffer.concat([header, body, ...windows, Buffer.alloc(TRAILER_BYTES)]);
  hashOf(file).copy(file, file.length - TRAILER_BYTES);
  return file;
}

/**
 * The index in `bytes`, which must not change afterwards. Its structure is sound and within LAYER_LIMITS; that its numbers
 * agree with each other is checked where the layer image is built.
 *
 * @throws LayerError `digest-mismatch` when the bytes were changed or describe another layer, `unsupported` for another
 * version, `malformed`, `too-large`.
 */
export function decodeLayerIndex(bytes: Uint8Array, expectedLayer: Digest): LayerIndex {
  const file = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  if (file.length < HEADER_BYTES + TRAILER_BYTES || !file.subarray(0, 8).equals(MAGIC)) {
    throw new LayerError('malformed', `Cannot read the index of ${expectedLayer}: it is not a layer index`);
  }
  const word = (i: number) => file.readUInt32LE(8 + 4 * i);
  const [version, bodyBytes, bodyPacked, windowBytes] = [word(0), word(1), word(2), word(3)];
  if (version !== INDEX_VERSION) {
    throw new LayerError('unsupported', `Cannot read the index of ${expectedLayer}: version ${version}`);
  }
  if (!hashOf(file).equals(file.subarray(file.length - TRAILER_BYTES))) {
    throw new LayerError('digest-mismatch', `Cannot read the index of ${expectedLayer}: its bytes were changed`);
  }
  const layer = digestOfBytes(file.subarray(32, 64));
  if (layer !== expectedLayer) {
    throw new LayerError('digest-mismatch', `Cannot use the index: it is of ${layer}, not of ${expectedLayer}`);
  }
  if (HEADER_BYTES + bodyPacked + windowBytes + TRAILER_BYTES !== file.length) {
    throw new LayerError('malformed', `Cannot read the index of ${layer}: its lengths do not add up`);
  }
  checkSize(bodyBytes + windowBytes);
  const windowsAt = HEADER_BYTES + bodyPacked;
  const body = new VarintReader(decompressed(file.subarray(HEADER_BYTES, windowsAt), bodyBytes, layer));
  const windows = new VarintReader(file.subarray(windowsAt, windowsAt + windowBytes));
  const format = FORMATS[body.whole()];
  if (format === undefined) throw new LayerError('unsupported', `Cannot read the index of ${layer}: unknown format`);
  const blobSize = body.whole();
  const prioritySpans = body.whole();
  const diffId = body.whole() === 0 ? undefined : digestOfBytes(body.bytes(32));
  const entries = decodeEntries(body);
  const spans = decodeSpans(body, windows);
  if (body.left > 0) throw new LayerError('malformed', `Cannot read the index of ${layer}: something follows it`);
  return { layer, blobSize, diffId, format, entries, spans, prioritySpans };
}

function hashOf(file: Buffer): Buffer {
  return createHash('sha256')
    .update(file.subarray(0, file.length - TRAILER_BYTES))
    .digest();
}

function compressed(bytes: Buffer): Buffer {
  return zstdCompressSync(bytes, { params: { [constants.ZSTD_c_compressionLevel]: LEVEL } });
}

function decompressed(frame: Buffer, length: number, layer: Digest): Buffer {
  let bytes: Buffer;
  try {
    bytes = zstdDecompressSync(frame, { maxOutputLength: Math.max(length, 1), chunkSize: Math.max(length, 1024) });
  } catch (cause) {
    throw new LayerError('malformed', `Cannot read the index of ${layer}: it does not decompress to its length`, {
      cause,
    });
  }
  if (bytes.length !== length) {
    throw new LayerError('malformed', `Cannot read the index of ${layer}: ${bytes.length} bytes, not ${length}`);
  }
  return bytes;
}

function checkSize(bytes: number): void {
  if (bytes > LAYER_LIMITS.indexBytes) {
    throw new LayerError('too-large', `Cannot take an index of ${bytes} bytes: ${LAYER_LIMITS.indexBytes} at most`);
  }
}
