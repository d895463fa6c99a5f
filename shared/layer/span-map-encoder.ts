import { bytesOf, hexOf } from '#shared/digest/digest.ts';
import { type IndexSpan, LayerError } from './layer-index.ts';
import type { ImageExtent } from './span-map.ts';
import {
  NO_CHECKPOINT,
  SPAN_MAP_FORMATS,
  SPAN_MAP_MAGIC,
  SPAN_MAP_VERSION,
  spanMapHash,
  spanMapSections,
  type SpanMapCounts,
  type SpanMapHeader,
} from './span-map-layout.ts';

const NO_WINDOW = new Uint8Array(0);

/** What `encodeSpanMap` is told of a span; its payload is the extents'. */
export interface SpanMapEntry {
  readonly span: IndexSpan;
  readonly imageStart: number;
  readonly imageEnd: number;
  readonly blobStart: number;
  readonly blobEnd: number;
  readonly extents: readonly ImageExtent[];
}

export interface SpanMapFields extends Omit<SpanMapHeader, 'counts'> {
  readonly spans: readonly SpanMapEntry[];
}

/** The file that `parseSpanMap` reads; its layout stands at `spanMapSections`. @throws LayerError `too-large` */
export function encodeSpanMap(fields: SpanMapFields): Buffer {
  const { spans } = fields;
  const counts: SpanMapCounts = {
    spans: spans.length,
    extents: spans.reduce((sum, span) => sum + span.extents.length, 0),
    segments: spans.reduce((sum, { span }) => sum + span.segments.length, 0),
    pieces: spans.reduce((sum, { span }) => sum + span.pieces.length, 0),
    windowBytes: spans.reduce((sum, { span }) => sum + (span.checkpoint?.packedWindow.length ?? 0), 0),
  };
  if (counts.windowBytes > 0xffff_ffff) throw new LayerError('too-large', 'Cannot keep windows of more than 4 GiB');
  const at = spanMapSections(counts);
  const file = Buffer.from(new ArrayBuffer(at.end));
  SPAN_MAP_MAGIC.copy(file, 0);
  file.writeUInt32LE(SPAN_MAP_VERSION, 8);
  file.writeUInt32LE(SPAN_MAP_FORMATS.indexOf(fields.format), 12);
  file.writeDoubleLE(fields.blobSize, 16);
  file.writeDoubleLE(fields.metadataSize, 24);
  file.writeDoubleLE(fields.imageSize, 32);
  const words = [
    counts.spans,
    fields.prioritySpans,
    counts.extents,
    counts.segments,
    counts.pieces,
    counts.windowBytes,
  ];
  words.forEach((word, i) => file.writeUInt32LE(word, 40 + 4 * i));
  bytesOf(fields.layer).copy(file, 64);

  let extent = 0;
  let segment = 0;
  let piece = 0;
  let window = 0;
  const heads = (i: number): void => {
    file.writeUInt32LE(extent, at.firstExtent + 4 * i);
    file.writeUInt32LE(segment, at.firstSegment + 4 * i);
    file.writeUInt32LE(piece, at.firstPiece + 4 * i);
    file.writeUInt32LE(window, at.firstWindow + 4 * i);
  };
  spans.forEach((entry, i) => {
    const { span } = entry;
    file.writeDoubleLE(entry.imageStart, at.imageStart + 8 * i);
    file.writeDoubleLE(entry.imageEnd, at.imageEnd + 8 * i);
    file.writeDoubleLE(entry.blobStart, at.blobStart + 8 * i);
    file.writeDoubleLE(entry.blobEnd, at.blobEnd + 8 * i);
    file.writeUInt32LE(span.streamLength, at.decodedLength + 4 * i);
    file.writeUInt32LE(
      entry.extents.reduce((sum, { length }) => sum + length, 0),
      at.payloadLength + 4 * i,
    );
    heads(i);
    file.writeUInt8(span.checkpoint?.bits ?? NO_CHECKPOINT, at.bits + i);
    for (const { imageOffset, decodedOffset, length } of entry.extents) {
      file.writeDoubleLE(imageOffset, at.extentImage + 8 * extent);
      file.writeUInt32LE(decodedOffset, at.extentDecoded + 4 * extent);
      file.writeUInt32LE(length, at.extentLength + 4 * extent++);
    }
    for (const { blobOffset, blobLength, skip, length } of span.segments) {
      file.writeDoubleLE(blobOffset, at.segmentBlob + 8 * segment);
      file.writeUInt32LE(blobLength, at.segmentBlobLength + 4 * segment);
      file.writeUInt32LE(skip, at.segmentSkip + 4 * segment);
      file.writeUInt32LE(length, at.segmentLength + 4 * segment++);
    }
    for (const { length, digest } of span.pieces) {
      file.writeUInt32LE(length, at.pieceLength + 4 * piece);
      file.write(hexOf(digest), at.pieceDigest + 32 * piece++, 'hex');
    }
    const packedWindow = span.checkpoint?.packedWindow ?? NO_WINDOW;
    file.set(packedWindow, at.windows + window);
    window += packedWindow.length;
  });
  heads(spans.length);
  spanMapHash(file).copy(file, 96);
  return file;
}
