import type { ImageExtent } from '#shared/layer/span-map.ts';
import type { SpanCoding } from './span-decoder.ts';

/** Pieces of a span, one after the other, that can be verified before what lies behind them is decoded. */
export interface WantedPieces {
  readonly pieces: ReturnType<SpanCoding['pieces']>;
  /** Decoded bytes of the span that have them. */
  readonly decodedEnd: number;
  /** Where the bytes that they cover are, in order. */
  readonly extents: readonly ImageExtent[];
}

/** Where more than this part of a span has to be decoded for them, readers may as well wait for all of it. */
const MOST = 0.8;

/**
 * Of a span that is decoded from its front: the pieces, from the first to the last one, that have what it has of the image ranges.
 * undefined: it has only one, or nothing would be gained.
 */
export function wantedPieces(
  map: SpanCoding,
  span: number,
  wanted: readonly (readonly [imageStart: number, imageEnd: number])[],
): WantedPieces | undefined {
  const pieces = map.pieces(span);
  if (pieces.length < 2) return undefined;
  const extents = map.extents(span);
  let first = Infinity;
  let end = 0;
  let at = 0;
  for (const { imageOffset, length } of extents) {
    for (const [from, to] of wanted) {
      const start = Math.max(from, imageOffset);
      const stop = Math.min(to, imageOffset + length);
      if (start >= stop) continue;
      first = Math.min(first, at + start - imageOffset);
      end = Math.max(end, at + stop - imageOffset);
    }
    at += length;
  }
  if (end === 0) return undefined;
  let payloadStart = 0;
  let payloadEnd = 0;
  const inside: (typeof pieces)[number][] = [];
  for (const piece of pieces) {
    if (payloadEnd >= end) break;
    if (payloadEnd + piece.length <= first) payloadStart += piece.length;
    else inside.push(piece);
    payloadEnd += piece.length;
  }
  const covered: ImageExtent[] = [];
  at = 0;
  for (const { imageOffset, decodedOffset, length } of extents) {
    const from = Math.max(payloadStart, at);
    const to = Math.min(payloadEnd, at + length);
    if (from < to) {
      covered.push({
        imageOffset: imageOffset + from - at,
        decodedOffset: decodedOffset + from - at,
        length: to - from,
      });
    }
    at += length;
  }
  const last = covered.at(-1);
  const decodedEnd = last === undefined ? 0 : last.decodedOffset + last.length;
  return decodedEnd > map.decodedLength(span) * MOST ? undefined : { pieces: inside, decodedEnd, extents: covered };
}
