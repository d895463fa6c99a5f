import type { SpanSegment } from '#shared/layer/layer-index.ts';
import type { ImageExtent } from '#shared/layer/span-map.ts';
import type { SpanCoding } from './span-decoder.ts';

type Piece = ReturnType<SpanCoding['pieces']>[number];

/** A member of a span that can be decoded and verified alone. */
export interface WantedMember {
  readonly segment: SpanSegment;
  /** Cover what it decodes to. */
  readonly pieces: readonly Piece[];
  /** `decodedOffset` counts from the start of the member. */
  readonly extents: readonly ImageExtent[];
}

/** Where more than this part of a span would have to be decoded, all of it is decoded at once. */
const MOST = 0.6;

/**
 * The members of the span that have what it has of the image ranges. undefined: there are none that can be had alone, or they are most
 * of the span.
 */
export function wantedMembers(
  map: SpanCoding,
  span: number,
  wanted: readonly (readonly [imageStart: number, imageEnd: number])[],
): readonly WantedMember[] | undefined {
  const segments = map.segments(span);
  // Pieces count in the payload: the offsets are the same only where that is all that is decoded.
  if (segments.length < 2 || map.payloadLength(span) !== map.decodedLength(span)) return undefined;
  const extents = map.extents(span);
  const pieces = map.pieces(span);
  const members: WantedMember[] = [];
  let bytes = 0;
  let start = 0;
  let piece = 0;
  let pieceStart = 0;
  let extent = 0;
  for (const segment of segments) {
    const end = start + segment.length;
    const own: Piece[] = [];
    for (let next = pieces[piece]; next !== undefined && pieceStart + next.length <= end; next = pieces[++piece]) {
      own.push(next);
      pieceStart += next.length;
    }
    // A piece that reaches into the next member is of neither.
    if (pieceStart !== end) return undefined;
    const inside: ImageExtent[] = [];
    let isWanted = false;
    for (let at = extent; at < extents.length; at++) {
      const { decodedOffset, imageOffset, length } = extents[at] ?? { decodedOffset: 0, imageOffset: 0, length: 0 };
      if (decodedOffset >= end) break;
      if (decodedOffset + length <= start) {
        extent = at + 1;
        continue;
      }
      const from = Math.max(start, decodedOffset);
      const to = Math.min(end, decodedOffset + length);
      const imageStart = imageOffset + from - decodedOffset;
      inside.push({ decodedOffset: from - start, imageOffset: imageStart, length: to - from });
      isWanted ||= wanted.some(([first, last]) => imageStart < last && first < imageStart + to - from);
    }
    if (isWanted) {
      members.push({ segment, pieces: own, extents: inside });
      bytes += segment.length;
    }
    start = end;
  }
  return bytes > map.decodedLength(span) * MOST ? undefined : members;
}
