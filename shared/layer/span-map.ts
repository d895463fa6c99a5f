import type { Digest } from '#shared/digest/digest.ts';
import type { LayerFormat } from './layer-index.ts';

/** Where a run of a span's decoded bytes lies in the layer image. */
export interface ImageExtent {
  /** From the start of the span's decoded bytes. */
  readonly decodedOffset: number;
  readonly imageOffset: number;
  readonly length: number;
}

/**
 * The part of a layer's index that serving needs, as typed arrays over one file: no tree, no parsing, a few hundred KiB.
 * Image ranges of spans ascend and do not overlap; what lies between them (alignment) is zeros and belongs to none.
 */
export interface SpanMap {
  readonly layer: Digest;
  readonly format: LayerFormat;
  readonly blobSize: number;
  /** Bytes of superblock, inodes, directories: complete at once. The data area begins here. */
  readonly metadataSize: number;
  readonly imageSize: number;
  readonly spanCount: number;
  readonly prioritySpans: number;
  /** Image range [start, end) from the span's first payload byte to its last; equal where it has none. */
  imageStart(span: number): number;
  imageEnd(span: number): number;
  /** Range [start, end) of the blob that decodes to the span. */
  blobStart(span: number): number;
  blobEnd(span: number): number;
  /** Bytes that the extents cover; what a peer sends is these, concatenated. */
  payloadLength(span: number): number;
  decodedLength(span: number): number;
  /**
   * Of a span that no bounded range of the blob decodes to: first and last of the spans that come only together, by decoding the blob
   * from the first one's `blobStart` on. undefined: it can be had alone.
   */
  streamOf(span: number): readonly [first: number, last: number] | undefined;
  /** First and last span whose payload touches the image range, or undefined where the range is padding or metadata. */
  spansOf(imageOffset: number, length: number): readonly [first: number, last: number] | undefined;
}
