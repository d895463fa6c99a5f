import { bytesOf } from '#shared/digest/digest.ts';
import { EROFS_BLOCK_BYTES, writeErofs } from './erofs-writer.ts';
import { checkLayerIndex } from './index-check.ts';
import { LAYER_LIMITS, LayerError, type LayerIndex } from './layer-index.ts';
import { buildLayerTree } from './layer-tree.ts';
import type { ImageExtent } from './span-map.ts';
import { encodeSpanMap, type SpanMapEntry } from './span-map-encoder.ts';

export interface LayerImage {
  /** The image's first bytes, a multiple of 4 KiB: all of it but the files' contents. */
  readonly metadata: Buffer;
  readonly imageSize: number;
  /** The span map as `parseSpanMap` reads it. */
  readonly map: Buffer;
  /** Paths of directories without an entry of their own, the root left out, parents before children. */
  readonly impliedDirectories: readonly Buffer[];
  /** Owner of the layer's root where it has an entry for it. */
  readonly rootOwner: { readonly uid: number; readonly gid: number } | undefined;
  readonly inodes: number;
}

/**
 * Lays a layer out: metadata, then every file entry's content at a multiple of 4 KiB, in the order of the entries, hidden
 * and overwritten ones too. A pure function of the index.
 *
 * @throws LayerError when the index contradicts itself or passes a limit.
 */
export function buildLayerImage(index: LayerIndex): LayerImage {
  checkLayerIndex(index);
  const tree = buildLayerTree(index.entries);
  const dataBlocks = new Uint32Array(index.entries.length);
  let blocks = 0;
  for (let i = 0; i < index.entries.length; i++) {
    dataBlocks[i] = blocks;
    blocks += Math.ceil((index.entries[i]?.size ?? 0) / EROFS_BLOCK_BYTES);
    if (blocks * EROFS_BLOCK_BYTES > LAYER_LIMITS.imageBytes) {
      throw new LayerError('too-large', `Cannot lay out ${index.layer}: its files have more than 4 TiB`);
    }
  }
  const dataBytes = blocks * EROFS_BLOCK_BYTES;
  const { metadata, dataStart, inodes } = writeErofs(tree.root, dataBlocks, dataBytes, bytesOf(index.layer));
  const root = tree.root.entry;
  return {
    metadata,
    imageSize: dataStart + dataBytes,
    map: encodeSpanMap({
      layer: index.layer,
      format: index.format,
      blobSize: index.blobSize,
      metadataSize: dataStart,
      imageSize: dataStart + dataBytes,
      prioritySpans: index.prioritySpans,
      spans: mapSpans(index, dataBlocks, dataStart),
    }),
    impliedDirectories: tree.impliedDirectories,
    rootOwner: root === undefined ? undefined : { uid: root.uid, gid: root.gid },
    inodes,
  };
}

/** Cuts the entries' extents at the spans' borders. Both ascend in the stream: one walk. */
function mapSpans(index: LayerIndex, dataBlocks: Uint32Array, dataStart: number): SpanMapEntry[] {
  const extents = extentsInImage(index, dataBlocks, dataStart);
  const mapped: SpanMapEntry[] = [];
  let spanStart = 0;
  let imageEnd = dataStart;
  let current = extents.next();
  for (let i = 0; i < index.spans.length; i++) {
    const span = index.spans[i];
    if (span === undefined) continue;
    const spanEnd = spanStart + span.streamLength;
    const own: ImageExtent[] = [];
    let payload = 0;
    while (!current.done && current.value.streamOffset < spanEnd) {
      const { streamOffset, imageOffset, length } = current.value;
      const from = Math.max(streamOffset, spanStart);
      const to = Math.min(streamOffset + length, spanEnd);
      own.push({ decodedOffset: from - spanStart, imageOffset: imageOffset + from - streamOffset, length: to - from });
      payload += to - from;
      if (streamOffset + length > spanEnd) break;
      current = extents.next();
    }
    const pieces = span.pieces.reduce((sum, { length }) => (length > 0 ? sum + length : Number.NaN), 0);
    if (pieces !== payload) {
      throw new LayerError(
        'malformed',
        `Cannot lay out ${index.layer}: pieces of span ${i} verify ${pieces} bytes of ${payload}`,
      );
    }
    const imageStart = own[0]?.imageOffset ?? imageEnd;
    const last = own.at(-1);
    if (last !== undefined) imageEnd = last.imageOffset + last.length;
    const blobStart = span.segments.reduce((least, { blobOffset }) => Math.min(least, blobOffset), index.blobSize);
    const blobEnd = span.segments.reduce((most, part) => Math.max(most, part.blobOffset + part.blobLength), blobStart);
    mapped.push({ span, imageStart, imageEnd, blobStart, blobEnd, extents: own });
    spanStart = spanEnd;
  }
  return mapped;
}

function* extentsInImage(index: LayerIndex, dataBlocks: Uint32Array, dataStart: number) {
  for (let i = 0; i < index.entries.length; i++) {
    const base = dataStart + (dataBlocks[i] ?? 0) * EROFS_BLOCK_BYTES;
    for (const { fileOffset, streamOffset, length } of index.entries[i]?.extents ?? []) {
      yield { streamOffset, imageOffset: base + fileOffset, length };
    }
  }
}
