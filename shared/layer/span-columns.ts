import { bytesOf, digestOfBytes } from '#shared/digest/digest.ts';
import {
  type IndexSpan,
  LAYER_LIMITS,
  LayerError,
  type PackedCheckpoint,
  type SpanPiece,
  type SpanSegment,
} from './layer-index.ts';
import { VarintReader } from './varint-reader.ts';
import { VarintWriter } from './varint-writer.ts';

/**
 * Columns of the spans, one value after the other (v = varint, z = signed varint):
 *
 * 0 segments v   1 of each segment: blob offset less the end of the segment before z   2 blob length v   3 skip v   4 length v
 * 5 pieces v     6 lengths of pieces v   7 their digests, 32 bytes each
 * 8 checkpoint v: 0 = none, else 1 + bits   9 length of the packed window v
 *
 * A span's stream length is the sum of its segments' lengths. Packed windows are given and taken apart from the columns.
 */
const COLUMNS = 10;

/** Returns the packed windows, in order. @throws LayerError `malformed` */
export function encodeSpans(spans: readonly IndexSpan[], out: VarintWriter): Uint8Array[] {
  const columns = Array.from({ length: COLUMNS }, () => new VarintWriter());
  const column = (i: number): VarintWriter => columns[i] ?? out;
  const windows: Uint8Array[] = [];
  let blobEnd = 0;
  for (const { segments, pieces, checkpoint, streamLength } of spans) {
    column(0).whole(segments.length);
    let decoded = 0;
    for (const { blobOffset, blobLength, skip, length } of segments) {
      column(1).signed(blobOffset - blobEnd);
      column(2).whole(blobLength);
      column(3).whole(skip);
      column(4).whole(length);
      blobEnd = blobOffset + blobLength;
      decoded += length;
    }
    if (decoded !== streamLength) throw malformed(`segments of a span of ${streamLength} bytes give ${decoded}`);
    column(5).whole(pieces.length);
    for (const { length, digest } of pieces) {
      column(6).whole(length);
      column(7).bytes(bytesOf(digest));
    }
    column(8).whole(checkpoint === undefined ? 0 : 1 + checkpoint.bits);
    if (checkpoint === undefined) continue;
    column(9).whole(checkpoint.packedWindow.length);
    windows.push(checkpoint.packedWindow);
  }
  out.whole(spans.length);
  for (const { length } of columns) out.whole(length);
  for (const { written } of columns) out.bytes(written);
  return windows;
}

/** @throws LayerError `malformed`, `too-large` */
export function decodeSpans(input: VarintReader, windows: VarintReader): IndexSpan[] {
  const count = input.count('spans', input.left);
  const lengths = Array.from({ length: COLUMNS }, () => input.whole());
  const columns = lengths.map((length) => new VarintReader(input.bytes(length)));
  const column = (i: number): VarintReader => columns[i] ?? input;
  if (count > column(0).left) throw malformed('it has fewer spans than it says');
  const spans: IndexSpan[] = [];
  let blobEnd = 0;
  for (let i = 0; i < count; i++) {
    const segments: SpanSegment[] = [];
    let streamLength = 0;
    for (let left = column(0).count('segments', column(2).left); left > 0; left--) {
      const blobOffset = blobEnd + column(1).signed();
      const segment = { blobOffset, blobLength: column(2).whole(), skip: column(3).whole(), length: column(4).whole() };
      segments.push(segment);
      blobEnd = segment.blobOffset + segment.blobLength;
      streamLength += segment.length;
    }
    if (streamLength > LAYER_LIMITS.spanBytes) throw malformed(`span ${i} has ${streamLength} bytes`);
    const pieces: SpanPiece[] = [];
    for (let left = column(5).count('pieces', column(6).left); left > 0; left--) {
      pieces.push({ length: column(6).whole(), digest: digestOfBytes(column(7).bytes(32)) });
    }
    const code = column(8).whole();
    if (code > 8) throw malformed(`the checkpoint of span ${i} begins at bit ${code - 1}`);
    const checkpoint: PackedCheckpoint | undefined =
      code === 0 ? undefined : { bits: code - 1, packedWindow: windows.bytes(column(9).whole()) };
    spans.push({ streamLength, segments, pieces, checkpoint });
  }
  if (windows.left > 0 || columns.some(({ left }) => left > 0)) throw malformed('a column is longer than its spans');
  return spans;
}

function malformed(why: string): LayerError {
  return new LayerError('malformed', `Cannot code the layer's index: ${why}`);
}
