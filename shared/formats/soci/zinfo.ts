import { LayerError } from '#shared/layer/layer-index.ts';
import { WINDOW_BYTES } from '#shared/layer/packed-checkpoint.ts';

/** A place where a blob can be taken up: in a deflate stream, as zlib's zran.c writes it, or in a tar. */
export interface ZinfoPoint {
  /** Blob offset of the first byte that is wholly behind it. */
  readonly blobOffset: number;
  readonly streamOffset: number;
  /** High-order bits of the byte before `blobOffset` that still belong to what follows. */
  readonly bits: number;
  /** The 32 KiB of stream before it, zeros where there are none; undefined in a tar. */
  readonly window: Buffer | undefined;
}

export interface Zinfo {
  /** Version 1 leaves out the point at the front and takes for granted that it is at byte 10. */
  readonly version: 1 | 2;
  readonly points: readonly ZinfoPoint[];
}

const HEADER_BYTES = 12;
const POINT_BYTES = 8 + 8 + 1 + WINDOW_BYTES;
/** A gzip header without a file name. */
const PLAIN_HEADER_BYTES = 10;

/**
 * The `checkpoints` of a zTOC, all numbers little-endian:
 *
 * | bytes | what |
 * |---|---|
 * | 4 | i32: points |
 * | 8 | i64: stream bytes after which the next point is looked for |
 * | 32,785 each | i64 blob offset, i64 stream offset, u8 bits, window[32768] |
 *
 * https://github.com/awslabs/soci-snapshotter/blob/main/ztoc/compression/gzip_zinfo.c
 *
 * @returns points in ascending order, both in the blob and in the stream, the first at the stream's start
 * @throws LayerError `malformed`
 */
export function parseZinfo(bytes: Buffer): Zinfo {
  if (bytes.length < HEADER_BYTES) throw malformed(`${bytes.length} bytes of checkpoints`);
  const count = bytes.readInt32LE(0);
  const stored = (bytes.length - HEADER_BYTES) / POINT_BYTES;
  if (count < 1 || (stored !== count && stored !== count - 1)) {
    throw malformed(`${bytes.length} bytes for ${count} checkpoints`);
  }
  const points: ZinfoPoint[] = [];
  if (stored === count - 1) {
    points.push({ blobOffset: PLAIN_HEADER_BYTES, streamOffset: 0, bits: 0, window: Buffer.alloc(WINDOW_BYTES) });
  }
  for (let at = HEADER_BYTES; at < bytes.length; at += POINT_BYTES) {
    const point: ZinfoPoint = {
      blobOffset: Number(bytes.readBigInt64LE(at)),
      streamOffset: Number(bytes.readBigInt64LE(at + 8)),
      bits: bytes.readUInt8(at + 16),
      window: bytes.subarray(at + 17, at + POINT_BYTES),
    };
    const before = points.at(-1);
    const ascends =
      before === undefined
        ? point.streamOffset === 0 && point.blobOffset > 0 && point.bits === 0
        : point.blobOffset > before.blobOffset && point.streamOffset > before.streamOffset;
    if (!ascends || point.bits > 7 || !Number.isSafeInteger(point.blobOffset + point.streamOffset)) {
      throw malformed(`checkpoint ${points.length} is out of order or its bounds`);
    }
    points.push(point);
  }
  return { version: stored === count ? 2 : 1, points };
}

function malformed(what: string): LayerError {
  return new LayerError('malformed', `it has ${what}`);
}
