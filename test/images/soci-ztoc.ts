import { createRequire } from 'node:module';
import { sha256 } from '#shared/digest/digest.ts';
import { tocTypeName } from '#shared/formats/toc/toc-types.ts';
import type { LayerEntry } from '#shared/layer/layer-index.ts';
import { type FlatValue, writeFlatBuffer } from './flat-writer.ts';

/** zlib as a port: it tells block boundaries and the bits that are left, which Node's does not. */
interface PakoStream {
  input: Uint8Array;
  next_in: number;
  avail_in: number;
  output: Uint8Array;
  next_out: number;
  avail_out: number;
  data_type: number;
}
const load = createRequire(import.meta.url);
const Stream = load('pako/lib/zlib/zstream.js') as new () => PakoStream;
const { inflate, inflateInit2, inflateReset2 } = load('pako/lib/zlib/inflate.js') as {
  inflate(stream: PakoStream, flush: number): number;
  inflateInit2(stream: PakoStream, windowBits: number): number;
  inflateReset2(stream: PakoStream, windowBits: number): number;
};

const ANY_HEADER = 47;
const Z_BLOCK = 5;
const Z_STREAM_END = 1;
const WINDOW_BYTES = 32 * 1024;
/** `CompressionAlgorithm` of ztoc.fbs. */
export const UNCOMPRESSED = 2;

interface Point {
  readonly blobOffset: number;
  readonly streamOffset: number;
  readonly bits: number;
  readonly window: Buffer;
}

/** What SOCI makes a zTOC with: 4 MiB unless told otherwise. */
export interface ZtocOptions {
  readonly spanBytes?: number;
  /** Version 1 of the checkpoints lacks the first one. */
  readonly zinfoVersion?: 1 | 2;
  readonly version?: string;
  readonly algorithm?: number;
  /** What is to be wrong in it. */
  readonly change?: (parts: ZtocParts) => void;
}

export interface ZtocParts {
  blobSize: number;
  streamSize: number;
  lastSpan: number;
  digests: string[];
  checkpoints: Buffer;
  entries: FlatValue[];
}

/**
 * The zTOC of a gzip blob (of a tar with `algorithm` UNCOMPRESSED), written from its schema (ztoc.fbs) and its C code (gzip_zinfo.c): checkpoints at the block boundaries that SOCI
 * takes, digests of the compressed spans. `entries`: of the blob's tar, in its order; `streamSize`: the tar up to its end marker.
 */
export function writeZtoc(
  blob: Buffer,
  entries: readonly LayerEntry[],
  streamSize: number,
  options: ZtocOptions = {},
): Buffer {
  const spanBytes = options.spanBytes ?? 4 * 1024 * 1024;
  const isTar = options.algorithm === UNCOMPRESSED;
  const points = isTar ? cutPoints(blob, spanBytes) : findPoints(blob, spanBytes);
  const parts: ZtocParts = {
    blobSize: blob.length,
    streamSize,
    lastSpan: points.length - 1,
    digests: points.map(({ blobOffset, bits }, i) =>
      sha256(blob.subarray(blobOffset - (bits === 0 ? 0 : 1), points[i + 1]?.blobOffset ?? blob.length)),
    ),
    checkpoints: isTar ? tarZinfo(blob, spanBytes) : zinfo(points, spanBytes, options.zinfoVersion ?? 2),
    entries: entries.map(flatEntry),
  };
  options.change?.(parts);
  return writeFlatBuffer({
    table: [
      text(options.version ?? '0.9'),
      text('test'),
      { int64: parts.blobSize },
      { int64: parts.streamSize },
      { table: [{ list: parts.entries }] },
      {
        table: [
          options.algorithm === undefined ? undefined : { int8: options.algorithm },
          { int32: parts.lastSpan },
          { list: parts.digests.map(text) },
          { bytes: parts.checkpoints },
        ],
      },
    ],
  });
}

function text(value: string): FlatValue {
  return { bytes: Buffer.from(value) };
}

function flatEntry(entry: LayerEntry): FlatValue {
  const time = new Date(entry.mtimeSeconds * 1000).toISOString().slice(0, 19);
  const fraction = entry.mtimeNanoseconds === 0 ? '' : `.${String(entry.mtimeNanoseconds).padStart(9, '0')}`;
  const records = [...entry.xattrs].map(([key, value]): FlatValue => {
    return { table: [{ bytes: Buffer.concat([Buffer.from('SCHILY.xattr.'), key]) }, { bytes: value }] };
  });
  return {
    table: [
      { bytes: entry.type === 'directory' ? Buffer.concat([entry.path, Buffer.from('/')]) : entry.path },
      text(tocTypeName(entry.type)),
      { int64: entry.extents[0]?.streamOffset ?? 0 },
      { int64: entry.size },
      { bytes: entry.linkName },
      { int64: entry.mode },
      { uint32: entry.uid },
      { uint32: entry.gid },
      text('root'),
      text('root'),
      text(`${time}${fraction}Z`),
      { int64: entry.deviceMajor },
      { int64: entry.deviceMinor },
      // mtime is there as any other PAX record is.
      { list: [{ table: [text('mtime'), text('1')] }, ...records] },
    ],
  };
}

/** As SOCI's tar_zinfo.go. */
function cutPoints(blob: Buffer, spanBytes: number): readonly Point[] {
  return Array.from({ length: Math.ceil(blob.length / spanBytes) }, (_, at) => ({
    blobOffset: at * spanBytes,
    streamOffset: at * spanBytes,
    bits: 0,
    window: Buffer.alloc(0),
  }));
}

function tarZinfo(blob: Buffer, spanBytes: number): Buffer {
  const bytes = Buffer.alloc(20);
  bytes.writeInt32LE(2, 0);
  bytes.writeBigInt64LE(BigInt(spanBytes), 4);
  bytes.writeBigInt64LE(BigInt(blob.length), 12);
  return bytes;
}

/** The loop of zlib's zran.c, as SOCI has it. */
function findPoints(blob: Buffer, spanBytes: number): readonly Point[] {
  const stream = new Stream();
  inflateInit2(stream, ANY_HEADER);
  stream.input = blob;
  stream.next_in = 0;
  stream.avail_in = blob.length;
  const window = Buffer.alloc(WINDOW_BYTES);
  stream.output = window;
  stream.avail_out = 0;
  const points: Point[] = [];
  let streamOffset = 0;
  let last = 0;
  for (;;) {
    if (stream.avail_out === 0) {
      stream.avail_out = WINDOW_BYTES;
      stream.next_out = 0;
    }
    const before = stream.avail_out;
    const result = inflate(stream, Z_BLOCK);
    streamOffset += before - stream.avail_out;
    if (result === Z_STREAM_END) {
      if (stream.avail_in === 0) return points;
      inflateReset2(stream, ANY_HEADER);
      continue;
    }
    if (result !== 0) throw new Error(`Cannot inflate: zlib says ${result}`);
    const isBoundary = (stream.data_type & 128) !== 0 && (stream.data_type & 64) === 0;
    if (!isBoundary || !(streamOffset === 0 || streamOffset - last > spanBytes)) continue;
    const left = stream.avail_out;
    points.push({
      blobOffset: stream.next_in,
      streamOffset,
      bits: stream.data_type & 7,
      window: Buffer.concat([window.subarray(WINDOW_BYTES - left), window.subarray(0, WINDOW_BYTES - left)]),
    });
    last = streamOffset;
  }
}

function zinfo(points: readonly Point[], spanBytes: number, version: 1 | 2): Buffer {
  const head = Buffer.alloc(12);
  head.writeInt32LE(points.length, 0);
  head.writeBigInt64LE(BigInt(spanBytes), 4);
  const packed = points.slice(2 - version).map(({ blobOffset, streamOffset, bits, window }) => {
    const point = Buffer.alloc(17);
    point.writeBigInt64LE(BigInt(blobOffset), 0);
    point.writeBigInt64LE(BigInt(streamOffset), 8);
    point.writeUInt8(bits, 16);
    return Buffer.concat([point, window]);
  });
  return Buffer.concat([head, ...packed]);
}
