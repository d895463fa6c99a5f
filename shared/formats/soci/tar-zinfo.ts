import { LayerError } from '#shared/layer/layer-index.ts';
import type { ZinfoPoint } from './zinfo.ts';

const BYTES = 4 + 8 + 8;
const VERSION = 2;
/** SOCI's own are of 4 MiB; smaller ones than this would make a long list of a large layer. */
const MIN_SPAN_BYTES = 64 * 1024;

/**
 * The `checkpoints` of a zTOC of an uncompressed tar, which is cut into spans of one size: i32 version, i64 bytes of a span, i64 bytes of
 * the tar, little-endian.
 *
 * https://github.com/awslabs/soci-snapshotter/blob/main/ztoc/compression/tar_zinfo.go
 *
 * @throws LayerError `malformed`, `unsupported`
 */
export function parseTarZinfo(bytes: Buffer, blobSize: number): readonly ZinfoPoint[] {
  if (bytes.length !== BYTES) throw malformed(`${bytes.length} bytes of checkpoints`);
  const version = bytes.readInt32LE(0);
  if (version !== VERSION) throw new LayerError('unsupported', `its checkpoints are of version ${version}`);
  const [spanBytes, tarBytes] = [Number(bytes.readBigInt64LE(4)), Number(bytes.readBigInt64LE(12))];
  if (tarBytes !== blobSize) throw malformed(`checkpoints of a tar of ${tarBytes} bytes, not ${blobSize}`);
  if (!(spanBytes >= MIN_SPAN_BYTES)) throw malformed(`spans of ${spanBytes} bytes`);
  const points: ZinfoPoint[] = [];
  for (let offset = 0; offset < tarBytes; offset += spanBytes) {
    points.push({ blobOffset: offset, streamOffset: offset, bits: 0, window: undefined });
  }
  return points;
}

function malformed(what: string): LayerError {
  return new LayerError('malformed', `it has ${what}`);
}
