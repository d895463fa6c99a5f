import { DecodeError, type SyncDecoder } from '#shared/formats/sync-decoder.ts';
import type { Checkpoint } from '#shared/layer/layer-index.ts';
import { resumeDeflate } from './resume-prefix.ts';

/** CRC and length behind a member's deflate stream. */
const TRAILER_BYTES = 8;
const START: Checkpoint = { bits: 0, window: Buffer.alloc(0) };

/**
 * The `length` bytes that a range of a gzip blob decodes to, taken up at the checkpoint. A member may end inside: its trailer
 * and the next member's header are passed over. Checksums are not looked at: digests verify the span.
 *
 * @param raw a decoder for raw deflate, for the member that the range begins in; `gzip` for those after it.
 * @param pause is called once `pause.at` bytes (fewer than `length`) are decoded, with the buffer that they are in.
 * @throws DecodeError when the bytes are corrupt or too few.
 */
export function decodeDeflateSpan(
  bytes: Uint8Array,
  length: number,
  checkpoint: Checkpoint | undefined,
  raw: SyncDecoder,
  gzip: SyncDecoder,
  pause?: { readonly at: number; readonly call: (output: Buffer) => void },
): Buffer {
  const output = Buffer.allocUnsafe(length);
  const { bits, window } = checkpoint ?? START;
  let to = resumeDeflate(raw, window, bits, bytes[0] ?? 0, output, length);
  let from = bits === 0 ? 0 : 1;
  let decoder = raw;
  let stop = pause !== undefined && pause.at > to ? pause.at : length;
  while (to < length) {
    decoder.write(bytes, from, bytes.length, output, to, stop);
    from += decoder.consumed;
    to += decoder.produced;
    if (to === stop && stop < length) {
      stop = length;
      pause?.call(output);
      continue;
    }
    if (to === length) break;
    if (decoder === raw && from + TRAILER_BYTES < bytes.length) {
      from += TRAILER_BYTES;
      decoder = gzip;
      decoder.reset();
    } else if (decoder.consumed === 0 && decoder.produced === 0) {
      throw new DecodeError(`it ends ${length - to} bytes early`);
    } else if (from >= bytes.length) {
      throw new DecodeError(`it ends ${length - to} bytes early`);
    }
  }
  return output;
}
