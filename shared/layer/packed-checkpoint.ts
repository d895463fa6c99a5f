import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import { type Checkpoint, LayerError, type PackedCheckpoint } from './layer-index.ts';

/** Deflate's farthest reference, and so the most that a window has. */
export const WINDOW_BYTES = 32 * 1024;
/** The most that zstd makes of a window. */
export const MAX_PACKED_BYTES = WINDOW_BYTES + 1024;
/** Within 4 % of what all windows in one frame take; part of the format, for the same window must give the same bytes. */
const LEVEL = 9;

export function packCheckpoint({ bits, window }: Checkpoint): PackedCheckpoint {
  if (window.length === 0) return { bits, packedWindow: Buffer.alloc(0) };
  const packed = zstdCompressSync(window, { params: { [constants.ZSTD_c_compressionLevel]: LEVEL } });
  // A copy of its own: what comes from zlib holds on to 16 KiB or to Node's pool.
  const packedWindow = Buffer.allocUnsafeSlow(packed.length);
  packedWindow.set(packed);
  return { bits, packedWindow };
}

/** @throws LayerError `malformed` where the window is damaged, or larger than one is. */
export function unpackCheckpoint({ bits, packedWindow }: PackedCheckpoint): Checkpoint {
  if (packedWindow.length === 0) return { bits, window: Buffer.alloc(0) };
  try {
    return { bits, window: zstdDecompressSync(packedWindow, { maxOutputLength: WINDOW_BYTES }) };
  } catch (cause) {
    throw new LayerError('malformed', 'Cannot take up the layer at a checkpoint: its window is damaged', { cause });
  }
}
