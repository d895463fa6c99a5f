import { createHash } from 'node:crypto';
import { zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import { bytesOf, type Digest, digestOfHex } from '#shared/digest/digest.ts';
import {
  type Checkpoint,
  type IndexSpan,
  LAYER_LIMITS,
  LayerError,
  type LayerFormat,
  type SpanSegment,
} from './layer-index.ts';
import type { ImageExtent, SpanMap } from './span-map.ts';

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
  /** Only for gzip. The window is decompressed at each call. */
  checkpoint(span: number): Checkpoint | undefined;
}

/** What `encodeSpanMap` is told of a span; its payload is the extents'. */
export interface SpanMapEntry {
  readonly span: IndexSpan;
  readonly imageStart: number;
  readonly imageEnd: number;
  readonly blobStart: number;
  readonly blobEnd: number;
  readonly extents: readonly ImageExtent[];
}

export interface SpanMapFields {
  readonly layer: Digest;
  readonly format: LayerFormat;
  readonly blobSize: number;
  readonly metadataSize: number;
  readonly imageSize: number;
  readonly prioritySpans: number;
  readonly spans: readonly SpanMapEntry[];
}

/** Of the whole file; a header alone tells how much more `parseSpanTable` needs. */
export const SPAN_MAP_HEADER_BYTES = 128;

const MAGIC = Buffer.from('KNDLMAP\0', 'latin1');
const VERSION = 1;
const FORMATS: readonly LayerFormat[] = ['estargz', 'zstd-chunked', 'gzip', 'zstd', 'tar'];
const NO_CHECKPOINT = 0xff;
const WINDOW_BYTES = 32 * 1024;

interface Counts {
  readonly spans: number;
  readonly extents: number;
  readonly segments: number;
  readonly pieces: number;
  readonly windowBytes: number;
}

/**
 * The file, little-endian, every section on a multiple of 8 (n spans, e extents, s segments, p pieces):
 *
 *   0  magic[8]   8 u32 version   12 u32 format   16 f64 blob size   24 f64 metadata size   32 f64 image size
 *  40  u32 n      44 u32 priority spans   48 u32 e   52 u32 s   56 u32 p   60 u32 bytes of windows
 *  64  layer digest[32]   96 sha256[32] of all that follows
 * 128  f64[n] image start, f64[n] image end, f64[n] blob start, f64[n] blob end, u32[n] decoded length, u32[n] payload length
 *      (serving needs no more than these), u32[n+1] first extent, u32[n+1] first segment, u32[n+1] first piece, u32[n+1]
 *      first byte of the window, u8[n] bits of the checkpoint (255 = none),
 *      f64[e] image offset, u32[e] decoded offset, u32[e] length, f64[s] blob offset, u32[s] blob length, u32[s] skip,
 *      u32[s] length, u32[p] length, u8[p * 32] digests, u8[] windows, each a zstd frame
 */
function sections(counts: Counts) {
  let at = SPAN_MAP_HEADER_BYTES;
  const section = (bytes: number): number => {
    const start = at;
    at = Math.ceil((at + bytes) / 8) * 8;
    return start;
  };
  const { spans: n, extents: e, segments: s, pieces: p, windowBytes } = counts;
  return {
    imageStart: section(8 * n),
    imageEnd: section(8 * n),
    blobStart: section(8 * n),
    blobEnd: section(8 * n),
    decodedLength: section(4 * n),
    payloadLength: section(4 * n),
    tableEnd: section(0),
    firstExtent: section(4 * (n + 1)),
    firstSegment: section(4 * (n + 1)),
    firstPiece: section(4 * (n + 1)),
    firstWindow: section(4 * (n + 1)),
    bits: section(n),
    extentImage: section(8 * e),
    extentDecoded: section(4 * e),
    extentLength: section(4 * e),
    segmentBlob: section(8 * s),
    segmentBlobLength: section(4 * s),
    segmentSkip: section(4 * s),
    segmentLength: section(4 * s),
    pieceLength: section(4 * p),
    pieceDigest: section(32 * p),
    windows: section(windowBytes),
    end: section(0),
  };
}

export function encodeSpanMap(fields: SpanMapFields): Buffer {
  const { spans } = fields;
  const windows = spans.map(({ span }) =>
    span.checkpoint === undefined || span.checkpoint.window.length === 0
      ? undefined
      : zstdCompressSync(span.checkpoint.window),
  );
  const counts: Counts = {
    spans: spans.length,
    extents: spans.reduce((sum, span) => sum + span.extents.length, 0),
    segments: spans.reduce((sum, { span }) => sum + span.segments.length, 0),
    pieces: spans.reduce((sum, { span }) => sum + span.pieces.length, 0),
    windowBytes: windows.reduce((sum, window) => sum + (window?.length ?? 0), 0),
  };
  if (counts.windowBytes > 0xffff_ffff) throw new LayerError('too-large', 'Cannot keep windows of more than 4 GiB');
  const at = sections(counts);
  const file = Buffer.from(new ArrayBuffer(at.end));
  MAGIC.copy(file, 0);
  file.writeUInt32LE(VERSION, 8);
  file.writeUInt32LE(FORMATS.indexOf(fields.format), 12);
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
      bytesOf(digest).copy(file, at.pieceDigest + 32 * piece++);
    }
    window += windows[i]?.copy(file, at.windows + window) ?? 0;
  });
  heads(spans.length);
  hashOf(file).copy(file, 96);
  return file;
}

function hashOf(file: Uint8Array): Buffer {
  return createHash('sha256').update(file.subarray(SPAN_MAP_HEADER_BYTES)).digest();
}

/** The file is what was written: for use after an unclean boot. `parseSpanMap` does not read the whole file. */
export function verifySpanMap(file: Uint8Array): boolean {
  return file.length >= SPAN_MAP_HEADER_BYTES && hashOf(file).equals(file.subarray(96, 128));
}

/**
 * Bytes from the start of the file that `parseSpanTable` needs, told by its first SPAN_MAP_HEADER_BYTES.
 * @throws LayerError `malformed`
 */
export function spanTableBytes(header: Uint8Array): number {
  return sections(readHeader(header).counts).tableEnd;
}

/** The part that serving needs, from a prefix of the file. @throws LayerError `malformed` */
export function parseSpanTable(prefix: Uint8Array): SpanMap {
  return new SpanTable(prefix, false);
}

/**
 * The whole file, as views over `file` (which must not change): a copy is made only where it is not aligned to 8 bytes.
 * @throws LayerError `malformed` when it is cut, of another version, or its tables do not ascend.
 */
export function parseSpanMap(file: Uint8Array): DecodableSpanMap {
  return new FullSpanMap(file);
}

function readHeader(file: Uint8Array) {
  const header = Buffer.from(file.buffer, file.byteOffset, file.length);
  if (header.length < SPAN_MAP_HEADER_BYTES || !header.subarray(0, 8).equals(MAGIC)) {
    throw malformed('it is not a span map');
  }
  const version = header.readUInt32LE(8);
  if (version !== VERSION) throw malformed(`its version is ${version}, not ${VERSION}`);
  const format = FORMATS[header.readUInt32LE(12)];
  if (format === undefined) throw malformed('its format is unknown');
  const word = (i: number) => header.readUInt32LE(40 + 4 * i);
  const counts = { spans: word(0), extents: word(2), segments: word(3), pieces: word(4), windowBytes: word(5) };
  const sizes = [header.readDoubleLE(16), header.readDoubleLE(24), header.readDoubleLE(32)] as const;
  if (!sizes.every((size) => Number.isSafeInteger(size) && size >= 0)) throw malformed('a size is no whole number');
  return {
    layer: digestOfHex(header.toString('hex', 64, 96)),
    format,
    blobSize: sizes[0],
    metadataSize: sizes[1],
    imageSize: sizes[2],
    prioritySpans: word(1),
    counts,
  };
}

class SpanTable implements SpanMap {
  readonly layer: Digest;
  readonly format: LayerFormat;
  readonly blobSize: number;
  readonly metadataSize: number;
  readonly imageSize: number;
  readonly spanCount: number;
  readonly prioritySpans: number;
  protected readonly file: Uint8Array;
  protected readonly counts: Counts;
  readonly #imageStart: Float64Array;
  readonly #imageEnd: Float64Array;
  readonly #blobStart: Float64Array;
  readonly #blobEnd: Float64Array;
  readonly #decodedLength: Uint32Array;
  readonly #payloadLength: Uint32Array;

  constructor(bytes: Uint8Array, whole: boolean) {
    const header = readHeader(bytes);
    const at = sections(header.counts);
    const wanted = whole ? at.end : at.tableEnd;
    if (bytes.length < wanted) throw malformed(`it has ${bytes.length} bytes, not ${wanted}`);
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
    if (this.prioritySpans > this.spanCount) throw malformed('it has more priority spans than spans');
    if (this.metadataSize > this.imageSize) throw malformed('its metadata is larger than its image');
    let end = this.metadataSize;
    for (let i = 0; i < this.spanCount; i++) {
      const start = this.imageStart(i);
      const ordered = start >= end && this.imageEnd(i) >= start && this.blobStart(i) >= 0;
      end = this.imageEnd(i);
      const inside = end <= this.imageSize && this.blobEnd(i) >= this.blobStart(i) && this.blobEnd(i) <= this.blobSize;
      const decoded = this.decodedLength(i);
      // NaN fails every comparison and so is refused too.
      if (!(ordered && inside && decoded <= LAYER_LIMITS.spanBytes && this.payloadLength(i) <= decoded)) {
        throw malformed(`span ${i} is out of order or out of bounds`);
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

  constructor(bytes: Uint8Array) {
    super(bytes, true);
    const { counts, file, spanCount: n } = this;
    const at = sections(counts);
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
        if (head < before) throw malformed('a table does not ascend');
        before = head;
      }
      if (heads[0] !== 0 || before !== count) throw malformed('a table does not cover its entries');
    }
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
      if (!(decodedOffset >= decodedEnd && imageOffset >= imageEnd)) throw malformed(`extents of span ${span} overlap`);
      decodedEnd = decodedOffset + length;
      imageEnd = imageOffset + length;
      extents.push({ imageOffset, decodedOffset, length });
    }
    if (decodedEnd > this.decodedLength(span) || imageEnd > this.imageEnd(span)) {
      throw malformed(`extents of span ${span} leave it`);
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
        throw malformed(`segments of span ${span} leave its range of the blob`);
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
    const stored = this.#windows.subarray(this.#firstWindow[span], this.#firstWindow[span + 1]);
    if (stored.length === 0) return { bits, window: Buffer.alloc(0) };
    try {
      return { bits, window: zstdDecompressSync(stored, { maxOutputLength: WINDOW_BYTES }) };
    } catch (cause) {
      throw new LayerError('malformed', `Cannot read the span map: the window of span ${span} is damaged`, { cause });
    }
  }
}

function malformed(why: string): LayerError {
  return new LayerError('malformed', `Cannot read the span map: ${why}`);
}
