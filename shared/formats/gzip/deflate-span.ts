import { DecodeError, SyncDecoder } from '#shared/formats/sync-decoder.ts';
import type { Checkpoint } from '#shared/layer/layer-index.ts';
import { resumePrefix } from './resume-prefix.ts';

/** CRC and length behind a member's deflate stream. */
const TRAILER_BYTES = 8;

/**
 * The `length` bytes that a range of a gzip blob decodes to, taken up at the checkpoint. A member may end inside: its trailer
 * and the next member's header are passed over. Checksums are not looked at: digests verify the span.
 *
 * @param gzip a decoder for gzip, used for the members after the first.
 * @throws DecodeError when the bytes are corrupt or too few.
 */
export function decodeDeflateSpan(
  bytes: Uint8Array,
  length: number,
  checkpoint: Checkpoint | undefined,
  gzip: SyncDecoder,
): Buffer {
  const output = Buffer.allocUnsafe(length);
  const bits = checkpoint?.bits ?? 0;
  using raw = new SyncDecoder('deflate-raw', checkpoint?.window);
  let from = 0;
  let to = 0;
  const prefix = resumePrefix(bits, bytes[0] ?? 0);
  if (prefix.length > 0) {
    raw.write(prefix, 0, prefix.length, output, 0, length);
    to = raw.produced;
    from = 1;
    // A stream may end in its first bits; then the rest belongs to the next member.
    if (raw.consumed < prefix.length) throw new DecodeError('it ends before its first block');
  }
  let decoder = raw;
  while (to < length) {
    decoder.write(bytes, from, bytes.length, output, to, length);
    from += decoder.consumed;
    to += decoder.produced;
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
