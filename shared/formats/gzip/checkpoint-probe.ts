import { DecodeError, SyncDecoder } from '#shared/formats/sync-decoder.ts';
import type { Checkpoint } from '#shared/layer/layer-index.ts';
import { WINDOW_BYTES } from '#shared/layer/packed-checkpoint.ts';
import { resumeDeflate } from './resume-prefix.ts';

/** What is known of a block boundary and of what follows it. */
export interface Boundary {
  /** The up to 32 KiB of the member's output before it. */
  readonly window: Buffer;
  /** The blob from the byte before the boundary's next whole byte on; enough of it to decode to `after`. */
  readonly compressed: Buffer;
  /** Output that follows: 32 KiB, or less where the member ends. */
  readonly after: Buffer;
}

/** Output of trial decodings, and the windows of which each byte tells its own place; made once, since a layer has many checkpoints. */
const OUTPUTS = [0, 1, 2].map(() => Buffer.alloc(WINDOW_BYTES));
const [LOW, HIGH, INVERTED] = [(at: number) => at & 0xff, (at: number) => at >> 8, (at: number) => ~at & 0xff].map(
  (byteAt) => Buffer.from(Uint8Array.from({ length: WINDOW_BYTES }, (_, at) => byteAt(at))),
);

/**
 * Finds how many bits of the byte before the boundary still belong to the stream (Node's binding does not tell), and which bytes of
 * the window the stream refers to: the others are zeroed, so that windows compress to a fraction.
 *
 * Bits: a stream taken up at a wrong bit fails in its first block's header or gives other bytes. Window: bytes of the window can be
 * referred to by the next 32 KiB only; decoding those with three made-up windows tells which output bytes came from where. Both depend
 * on nothing but the blob, so everybody finds the same.
 *
 * @param decoder for raw deflate; made once, since a layer has many checkpoints.
 * @returns undefined where the stream cannot be taken up here (which a stream can be made to do on purpose, at most).
 */
export function probeCheckpoint(boundary: Boundary, decoder: SyncDecoder): Checkpoint | undefined {
  const { window, compressed, after } = boundary;
  for (let bits = 0; bits < 8; bits += 1) {
    const decoded = decodeFrom(decoder, compressed, bits, window, after.length, 0);
    if (decoded?.equals(after) === true)
      return { bits, window: usedWindow(decoder, compressed, bits, window, after.length) };
  }
  return undefined;
}

/** @param slot which of the outputs to decode into. */
function decodeFrom(
  decoder: SyncDecoder,
  compressed: Buffer,
  bits: number,
  window: Buffer,
  length: number,
  slot: number,
): Buffer | undefined {
  const output = OUTPUTS[slot] ?? Buffer.alloc(WINDOW_BYTES);
  try {
    let to = resumeDeflate(decoder, window, bits, compressed[0] ?? 0, output, length);
    if (to < length && compressed.length > 1) {
      decoder.write(compressed, 1, compressed.length, output, to, length);
      to += decoder.produced;
    }
    return to === length ? output.subarray(0, length) : undefined;
  } catch (error) {
    if (error instanceof DecodeError) return undefined;
    throw error;
  }
}

/** The window with every byte zeroed that nothing refers to, and cut at its front. */
function usedWindow(decoder: SyncDecoder, compressed: Buffer, bits: number, window: Buffer, length: number): Buffer {
  const [low, high, inverted] = [LOW, HIGH, INVERTED].map((made, slot) =>
    decodeFrom(decoder, compressed, bits, (made ?? window).subarray(0, window.length), length, slot),
  );
  if (low === undefined || high === undefined || inverted === undefined) return Buffer.from(window);
  const used = Buffer.alloc(window.length);
  let first = window.length;
  for (let at = 0; at < length; at += 1) {
    const value = low[at] ?? 0;
    // A literal is the same in all three.
    if (value === inverted[at]) continue;
    const from = ((high[at] ?? 0) << 8) | value;
    used[from] = window[from] ?? 0;
    if (from < first) first = from;
  }
  // A copy: the rest of the 32 KiB is not kept.
  return Buffer.from(used.subarray(first));
}
