import { bytesOf } from '#shared/digest/digest.ts';
import type { LayerIndex } from '#shared/layer/layer-index.ts';
import type { ImageExtent } from '#shared/layer/span-map.ts';
import { unpackCheckpoint } from '#shared/layer/packed-checkpoint.ts';
import type { SpanCoding } from './span-decoder.ts';

/**
 * How to decode a layer's spans, straight from its index and without a layer image: for checking an index against its blob. The
 * `imageOffset` of its extents is the offset in the stream.
 */
export function codingOfIndex(index: LayerIndex): SpanCoding {
  const starts: number[] = [0];
  for (const span of index.spans) starts.push((starts.at(-1) ?? 0) + span.streamLength);
  const extents: ImageExtent[][] = index.spans.map(() => []);
  let at = 0;
  for (const entry of index.entries) {
    for (const extent of entry.extents) {
      let from = extent.streamOffset;
      const end = from + extent.length;
      while (from < end) {
        while ((starts[at + 1] ?? Number.POSITIVE_INFINITY) <= from) at += 1;
        const start = starts[at] ?? 0;
        const to = Math.min(end, starts[at + 1] ?? end);
        extents[at]?.push({ decodedOffset: from - start, imageOffset: from, length: to - from });
        from = to;
      }
    }
  }
  const spanAt = (span: number): LayerIndex['spans'][number] => {
    const found = index.spans[span];
    if (found === undefined) throw new RangeError(`Cannot find span ${span} of ${index.spans.length}`);
    return found;
  };
  return {
    layer: index.layer,
    format: index.format,
    blobStart: (span) => spanAt(span).segments[0]?.blobOffset ?? 0,
    blobEnd: (span) => {
      const last = spanAt(span).segments.at(-1);
      return last === undefined ? 0 : last.blobOffset + last.blobLength;
    },
    decodedLength: (span) => spanAt(span).streamLength,
    payloadLength: (span) => spanAt(span).pieces.reduce((sum, piece) => sum + piece.length, 0),
    extents: (span) => extents[span] ?? [],
    segments: (span) => spanAt(span).segments,
    pieces: (span) => spanAt(span).pieces.map(({ length, digest }) => ({ length, digest: bytesOf(digest) })),
    checkpoint: (span) => {
      const { checkpoint } = spanAt(span);
      return checkpoint === undefined ? undefined : unpackCheckpoint(checkpoint);
    },
  };
}
