import { createHash } from 'node:crypto';
import { digestOfBytes } from '#shared/digest/digest.ts';
import { LayerError, type LayerFormat } from './layer-index.ts';
import type { SpanMap } from './span-map.ts';

/** Of the whole file; a header alone tells how much more `parseSpanTable` needs. */
export const SPAN_MAP_HEADER_BYTES = 128;

export const SPAN_MAP_MAGIC = Buffer.from('KNDLMAP\0', 'latin1');
export const SPAN_MAP_VERSION = 1;
export const SPAN_MAP_FORMATS: readonly LayerFormat[] = ['estargz', 'zstd-chunked', 'gzip', 'zstd', 'tar', 'soci'];
/** Bits of a span that has none. */
export const NO_CHECKPOINT = 0xff;

export interface SpanMapCounts {
  readonly spans: number;
  readonly extents: number;
  readonly segments: number;
  readonly pieces: number;
  readonly windowBytes: number;
}

/**
 * The file, little-endian, every section on a multiple of 8 (n spans, e extents, s segments, p pieces):
 *
 *   0  magic[8]   8 u32 version   12 u32 format   16 f64 blob size   24 f64 metadata size   32 f64 image size
 *  40  u32 n      44 u32 priority spans   48 u32 e   52 u32 s   56 u32 p   60 u32 bytes of windows
 *  64  layer digest[32]   96 sha256[32] of all that follows
 * 128  f64[n] image start, f64[n] image end, f64[n] blob start, f64[n] blob end, u32[n] decoded length, u32[n] payload length
 *      (serving needs no more than these), u32[n+1] first extent, u32[n+1] first segment, u32[n+1] first piece, u32[n+1]
 *      first byte of the window, u8[n] bits of the checkpoint (255 = none),
 *      f64[e] image offset, u32[e] decoded offset, u32[e] length, f64[s] blob offset, u32[s] blob length, u32[s] skip,
 *      u32[s] length, u32[p] length, u8[p * 32] digests, u8[] windows, each a zstd frame
 */
export function spanMapSections(counts: SpanMapCounts) {
  let at = SPAN_MAP_HEADER_BYTES;
  const section = (bytes: number): number => {
    const start = at;
    at = Math.ceil((at + bytes) / 8) * 8;
    return start;
  };
  const { spans: n, extents: e, segments: s, pieces: p, windowBytes } = counts;
  return {
    imageStart: section(8 * n),
    imageEnd: section(8 * n),
    blobStart: section(8 * n),
    blobEnd: section(8 * n),
    decodedLength: section(4 * n),
    payloadLength: section(4 * n),
    tableEnd: section(0),
    firstExtent: section(4 * (n + 1)),
    firstSegment: section(4 * (n + 1)),
    firstPiece: section(4 * (n + 1)),
    firstWindow: section(4 * (n + 1)),
    bits: section(n),
    extentImage: section(8 * e),
    extentDecoded: section(4 * e),
    extentLength: section(4 * e),
    segmentBlob: section(8 * s),
    segmentBlobLength: section(4 * s),
    segmentSkip: section(4 * s),
    segmentLength: section(4 * s),
    pieceLength: section(4 * p),
    pieceDigest: section(32 * p),
    windows: section(windowBytes),
    end: section(0),
  };
}

export interface SpanMapHeader
  extends Pick<SpanMap, 'layer' | 'format' | 'blobSize' | 'metadataSize' | 'imageSize' | 'prioritySpans'> {
  readonly counts: SpanMapCounts;
}

/** @throws LayerError `malformed` */
export function readSpanMapHeader(file: Uint8Array): SpanMapHeader {
  const header = Buffer.from(file.buffer, file.byteOffset, file.length);
  if (header.length < SPAN_MAP_HEADER_BYTES || !header.subarray(0, 8).equals(SPAN_MAP_MAGIC)) {
    throw malformedMap('it is not a span map');
  }
  const version = header.readUInt32LE(8);
  if (version !== SPAN_MAP_VERSION) throw malformedMap(`its version is ${version}, not ${SPAN_MAP_VERSION}`);
  const format = SPAN_MAP_FORMATS[header.readUInt32LE(12)];
  if (format === undefined) throw malformedMap('its format is unknown');
  const word = (i: number) => header.readUInt32LE(40 + 4 * i);
  const counts = { spans: word(0), extents: word(2), segments: word(3), pieces: word(4), windowBytes: word(5) };
  const sizes = [header.readDoubleLE(16), header.readDoubleLE(24), header.readDoubleLE(32)] as const;
  if (!sizes.every((size) => Number.isSafeInteger(size) && size >= 0)) throw malformedMap('a size is no whole number');
  return {
    layer: digestOfBytes(header.subarray(64, 96)),
    format,
    blobSize: sizes[0],
    metadataSize: sizes[1],
    imageSize: sizes[2],
    prioritySpans: word(1),
    counts,
  };
}

/** What stands at 96: the sha256 of all that follows the header. */
export function spanMapHash(file: Uint8Array): Buffer {
  return createHash('sha256').update(file.subarray(SPAN_MAP_HEADER_BYTES)).digest();
}

export function malformedMap(why: string): LayerError {
  return new LayerError('malformed', `Cannot read the span map: ${why}`);
}
