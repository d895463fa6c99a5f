import type { Digest } from '#shared/digest/digest.ts';
import { type Checkpoint, LAYER_LIMITS, type LayerFormat, type SpanSegment } from './layer-index.ts';
import { unpackCheckpoint } from './packed-checkpoint.ts';
import type { ImageExtent, SpanMap } from './span-map.ts';
import {
  malformedMap,
  NO_CHECKPOINT,
  readSpanMapHeader,
  SPAN_MAP_HEADER_BYTES,
  spanMapHash,
  spanMapSections,
  type SpanMapCounts,
} from './span-map-layout.ts';

export { SPAN_MAP_HEADER_BYTES };

/** A piece with the raw 32 bytes of its sha256. */
export interface DecodablePiece {
  readonly length: number;
  readonly digest: Uint8Array;
}

/** A span map with what decoders and peers need besides. Arguments are span numbers below `spanCount`. */
export interface DecodableSpanMap extends SpanMap {
  /** In ascending order in both coordinates; their lengths sum up to the payload. */
  extents(span: number): ImageExtent[];
  segments(span: number): SpanSegment[];
  pieces(span: number): DecodablePiece[];
  /** Only for gzip. The window is decompressed at each call. @throws LayerError where it is damaged */
  checkpoint(span: number): Checkpoint | undefined;
}

/** The file is what was written: for use after an unclean boot. `parseSpanMap` does not read the whole file. */
export function verifySpanMap(file: Uint8Array): boolean {
  return file.length >= SPAN_MAP_HEADER_BYTES && spanMapHash(file).equals(file.subarray(96, 128));
}

/**
 * Bytes from the start of the file that `parseSpanTable` needs, told by its first SPAN_MAP_HEADER_BYTES.
 * @throws LayerError `malformed`
 */
export function spanTableBytes(header: Uint8Array): number {
  return spanMapSections(readSpanMapHeader(header).counts).tableEnd;
}

/** The part that finding spans needs, from a prefix of the file. @throws LayerError `malformed` */
export function parseSpanTable(prefix: Uint8Array): Omit<SpanMap, 'streamOf'> {
  return new SpanTable(prefix, false);
}

/**
 * The whole file, as views over `file` (which must not change): a copy is made only where it is not aligned to 8 bytes.
 * @throws LayerError `malformed` when it is cut, of another version, or its tables do not ascend.
 */
export function parseSpanMap(file: Uint8Array): DecodableSpanMap {
  return new FullSpanMap(file);
}

class SpanTable implements Omit<SpanMap, 'streamOf'> {
  readonly layer: Digest;
  readonly format: LayerFormat;
  readonly blobSize: number;
  readonly metadataSize: number;
  readonly imageSize: number;
  readonly spanCount: number;
  readonly prioritySpans: number;
  protected readonly file: Uint8Array;
  protected readonly counts: SpanMapCounts;
  readonly #imageStart: Float64Array;
  readonly #imageEnd: Float64Array;
  readonly #blobStart: Float64Array;
  readonly #blobEnd: Float64Array;
  readonly #decodedLength: Uint32Array;
  readonly #payloadLength: Uint32Array;

  constructor(bytes: Uint8Array, whole: boolean) {
    const header = readSpanMapHeader(bytes);
    const at = spanMapSections(header.counts);
    const wanted = whole ? at.end : at.tableEnd;
    if (bytes.length < wanted) throw malformedMap(`it has ${bytes.length} bytes, not ${wanted}`);
    const file = bytes.byteOffset % 8 === 0 ? bytes : new Uint8Array(bytes);
    const n = header.counts.spans;
    const base = file.byteOffset;
    this.file = file;
    this.counts = header.counts;
    this.layer = header.layer;
    this.format = header.format;
    this.blobSize = header.blobSize;
    this.metadataSize = header.metadataSize;
    this.imageSize = header.imageSize;
    this.spanCount = n;
    this.prioritySpans = header.prioritySpans;
    this.#imageStart = new Float64Array(file.buffer, base + at.imageStart, n);
    this.#imageEnd = new Float64Array(file.buffer, base + at.imageEnd, n);
    this.#blobStart = new Float64Array(file.buffer, base + at.blobStart, n);
    this.#blobEnd = new Float64Array(file.buffer, base + at.blobEnd, n);
    this.#decodedLength = new Uint32Array(file.buffer, base + at.decodedLength, n);
    this.#payloadLength = new Uint32Array(file.buffer, base + at.payloadLength, n);
    this.#check();
  }

  #check(): void {
    if (this.prioritySpans > this.spanCount) throw malformedMap('it has more priority spans than spans');
    if (this.metadataSize > this.imageSize) throw malformedMap('its metadata is larger than its image');
    let end = this.metadataSize;
    for (let i = 0; i < this.spanCount; i++) {
      const start = this.imageStart(i);
      const ordered = start >= end && this.imageEnd(i) >= start && this.blobStart(i) >= 0;
      end = this.imageEnd(i);
      const inside = end <= this.imageSize && this.blobEnd(i) >= this.blobStart(i) && this.blobEnd(i) <= this.blobSize;
      const decoded = this.decodedLength(i);
      // NaN fails every comparison and so is refused too.
      if (!(ordered && inside && decoded <= LAYER_LIMITS.spanBytes && this.payloadLength(i) <= decoded)) {
        throw malformedMap(`span ${i} is out of order or out of bounds`);
      }
    }
  }

  imageStart(span: number): number {
    return this.#imageStart[span] ?? this.imageSize;
  }
  imageEnd(span: number): number {
    return this.#imageEnd[span] ?? this.imageSize;
  }
  blobStart(span: number): number {
    return this.#blobStart[span] ?? this.blobSize;
  }
  blobEnd(span: number): number {
    return this.#blobEnd[span] ?? this.blobSize;
  }
  payloadLength(span: number): number {
    return this.#payloadLength[span] ?? 0;
  }
  decodedLength(span: number): number {
    return this.#decodedLength[span] ?? 0;
  }

  spansOf(imageOffset: number, length: number): readonly [first: number, last: number] | undefined {
    const end = imageOffset + length;
    let low = 0;
    let high = this.spanCount;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.imageEnd(middle) > imageOffset) high = middle;
      else low = middle + 1;
    }
    let first = low;
    high = this.spanCount;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.imageStart(middle) >= end) high = middle;
      else low = middle + 1;
    }
    let last = low - 1;
    while (first <= last && this.payloadLength(first) === 0) first++;
    while (first <= last && this.payloadLength(last) === 0) last--;
    return first <= last ? [first, last] : undefined;
  }
}

class FullSpanMap extends SpanTable implements DecodableSpanMap {
  readonly #firstExtent: Uint32Array;
  readonly #firstSegment: Uint32Array;
  readonly #firstPiece: Uint32Array;
  readonly #firstWindow: Uint32Array;
  readonly #bits: Uint8Array;
  readonly #extentImage: Float64Array;
  readonly #extentDecoded: Uint32Array;
  readonly #extentLength: Uint32Array;
  readonly #segmentBlob: Float64Array;
  readonly #segmentBlobLength: Uint32Array;
  readonly #segmentSkip: Uint32Array;
  readonly #segmentLength: Uint32Array;
  readonly #pieceLength: Uint32Array;
  readonly #digests: Uint8Array;
  readonly #windows: Uint8Array;
  /** First and last span of each run that comes only together, one after the other. */
  readonly #streams: Uint32Array;

  constructor(bytes: Uint8Array) {
    super(bytes, true);
    const { counts, file, spanCount: n } = this;
    const at = spanMapSections(counts);
    const words = (start: number, count: number) => new Uint32Array(file.buffer, file.byteOffset + start, count);
    const doubles = (start: number, count: number) => new Float64Array(file.buffer, file.byteOffset + start, count);
    this.#firstExtent = words(at.firstExtent, n + 1);
    this.#firstSegment = words(at.firstSegment, n + 1);
    this.#firstPiece = words(at.firstPiece, n + 1);
    this.#firstWindow = words(at.firstWindow, n + 1);
    this.#bits = file.subarray(at.bits, at.bits + n);
    this.#extentImage = doubles(at.extentImage, counts.extents);
    this.#extentDecoded = words(at.extentDecoded, counts.extents);
    this.#extentLength = words(at.extentLength, counts.extents);
    this.#segmentBlob = doubles(at.segmentBlob, counts.segments);
    this.#segmentBlobLength = words(at.segmentBlobLength, counts.segments);
    this.#segmentSkip = words(at.segmentSkip, counts.segments);
    this.#segmentLength = words(at.segmentLength, counts.segments);
    this.#pieceLength = words(at.pieceLength, counts.pieces);
    this.#digests = file.subarray(at.pieceDigest, at.pieceDigest + 32 * counts.pieces);
    this.#windows = file.subarray(at.windows, at.windows + counts.windowBytes);
    for (const [heads, count] of [
      [this.#firstExtent, counts.extents],
      [this.#firstSegment, counts.segments],
      [this.#firstPiece, counts.pieces],
      [this.#firstWindow, counts.windowBytes],
    ] as const) {
      let before = 0;
      for (const head of heads) {
        if (head < before) throw malformedMap('a table does not ascend');
        before = head;
      }
      if (heads[0] !== 0 || before !== count) throw malformedMap('a table does not cover its entries');
    }
    this.#streams = this.#findStreams();
  }

  streamOf(span: number): readonly [first: number, last: number] | undefined {
    for (let i = 0; i < this.#streams.length; i += 2) {
      const [first = 0, last = 0] = this.#streams.subarray(i, i + 2);
      if (span >= first && span <= last) return [first, last];
    }
    return undefined;
  }

  /** Spans whose last segment has no length, as long as that begins at the same place: in the same zstd frame. */
  #findStreams(): Uint32Array {
    const streams: number[] = [];
    let frame: number | undefined;
    for (let span = 0; span < this.spanCount; span++) {
      const end = this.#firstSegment[span + 1] ?? 0;
      const isOpen = end > (this.#firstSegment[span] ?? 0) && this.#segmentBlobLength[end - 1] === 0;
      const at = isOpen && this.decodedLength(span) > 0 ? this.#segmentBlob[end - 1] : undefined;
      if (at !== undefined && at === frame) streams[streams.length - 1] = span;
      else if (at !== undefined) streams.push(span, span);
      frame = at;
    }
    return Uint32Array.from(streams);
  }

  /** Bounds are checked here, for one span, so that loading stays cheap. @throws LayerError `malformed` */
  extents(span: number): ImageExtent[] {
    const extents: ImageExtent[] = [];
    let decodedEnd = 0;
    let imageEnd = this.imageStart(span);
    const end = this.#firstExtent[span + 1] ?? 0;
    for (let i = this.#firstExtent[span] ?? 0; i < end; i++) {
      const imageOffset = this.#extentImage[i] ?? 0;
      const decodedOffset = this.#extentDecoded[i] ?? 0;
      const length = this.#extentLength[i] ?? 0;
      if (!(decodedOffset >= decodedEnd && imageOffset >= imageEnd))
        throw malformedMap(`extents of span ${span} overlap`);
      decodedEnd = decodedOffset + length;
      imageEnd = imageOffset + length;
      extents.push({ imageOffset, decodedOffset, length });
    }
    if (decodedEnd > this.decodedLength(span) || imageEnd > this.imageEnd(span)) {
      throw malformedMap(`extents of span ${span} leave it`);
    }
    return extents;
  }

  segments(span: number): SpanSegment[] {
    const segments: SpanSegment[] = [];
    const end = this.#firstSegment[span + 1] ?? 0;
    for (let i = this.#firstSegment[span] ?? 0; i < end; i++) {
      const blobOffset = this.#segmentBlob[i] ?? 0;
      const blobLength = this.#segmentBlobLength[i] ?? 0;
      if (!(blobOffset >= this.blobStart(span) && blobOffset + blobLength <= this.blobEnd(span))) {
        throw malformedMap(`segments of span ${span} leave its range of the blob`);
      }
      segments.push({ blobOffset, blobLength, skip: this.#segmentSkip[i] ?? 0, length: this.#segmentLength[i] ?? 0 });
    }
    return segments;
  }

  pieces(span: number): DecodablePiece[] {
    const pieces: DecodablePiece[] = [];
    const end = this.#firstPiece[span + 1] ?? 0;
    for (let i = this.#firstPiece[span] ?? 0; i < end; i++) {
      pieces.push({ length: this.#pieceLength[i] ?? 0, digest: this.#digests.subarray(32 * i, 32 * i + 32) });
    }
    return pieces;
  }

  checkpoint(span: number): Checkpoint | undefined {
    const bits = this.#bits[span] ?? NO_CHECKPOINT;
    if (bits === NO_CHECKPOINT) return undefined;
    const packedWindow = this.#windows.subarray(this.#firstWindow[span], this.#firstWindow[span + 1]);
    return unpackCheckpoint({ bits, packedWindow });
  }
}
