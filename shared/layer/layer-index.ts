import type { Digest } from '#shared/digest/digest.ts';

/**
 * How the blob of a layer is stored. `estargz` covers external TOCs. `soci` is gzip whose index was made from a SOCI zTOC: its pieces verify
 * not the payload but the span's range of the blob. Such a layer can only be filled from its blob, and stays on its node.
 */
export type LayerFormat = 'estargz' | 'zstd-chunked' | 'gzip' | 'zstd' | 'tar' | 'soci';

export type EntryType = 'file' | 'directory' | 'symlink' | 'hardlink' | 'character' | 'block' | 'fifo';

/**
 * A run of a file's content in the layer's stream. What no extent covers is a hole and reads as zeros.
 */
export interface Extent {
  readonly fileOffset: number;
  readonly streamOffset: number;
  readonly length: number;
}

/**
 * One tar or TOC entry, as the layer has it: whiteouts still under their `.wh.` names, parents possibly missing,
 * a path possibly more than once (the last one counts). Paths are bytes, cleaned and relative: no leading or trailing
 * slash, no empty, `.` or `..` part; the root itself is the empty path.
 */
export interface LayerEntry {
  readonly path: Buffer;
  readonly type: EntryType;
  /** The twelve permission bits. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtimeSeconds: number;
  readonly mtimeNanoseconds: number;
  /** Bytes of a file; 0 for every other type. */
  readonly size: number;
  /** Target of a symlink as written, or cleaned path of a hard link's target; empty for every other type. */
  readonly linkName: Buffer;
  readonly deviceMajor: number;
  readonly deviceMinor: number;
  readonly xattrs: readonly (readonly [name: Buffer, value: Buffer])[];
  /** In ascending order in both coordinates; no two extents of a layer overlap in the stream. */
  readonly extents: readonly Extent[];
}

/** A separately compressed part of a span: a gzip member or a zstd frame, or the whole span's range. */
export interface SpanSegment {
  /** From the start of the blob. */
  readonly blobOffset: number;
  /** 0 where no bounded range decodes to it (inside a large zstd frame): peers have it, or the whole blob is streamed. */
  readonly blobLength: number;
  /** Decoded bytes to drop before the wanted ones (`innerOffset` of a TOC chunk). */
  readonly skip: number;
  /** Decoded bytes wanted. */
  readonly length: number;
}

/** A run of the span's payload with a digest of its own (`soci`: all of it, and the digest of what it is decoded from). */
export interface SpanPiece {
  readonly length: number;
  readonly digest: Digest;
}

/** Where a deflate stream can be taken up in its middle (reference: zlib's zran.c). */
export interface Checkpoint {
  /** High-order bits of the segment's first byte that still belong to the stream, 1-7; 0 = all eight. */
  readonly bits: number;
  /** The up to 32 KiB of stream before it. Empty at the start of a member: the segment then begins after its gzip header. */
  readonly window: Buffer;
}

/**
 * A checkpoint as indexes and span maps have it. Most of a window is zeros: packed, it is a twentieth, in memory (a layer of some GB has
 * a thousand) as on disk.
 */
export interface PackedCheckpoint {
  readonly bits: number;
  /** A zstd frame; empty where the window is. */
  readonly packedWindow: Uint8Array;
}

/**
 * The unit of fetching, verifying, caching and sharing.
 *
 * The layer's *stream* is the concatenation of its spans' decoded bytes: for gzip, zstd and tar it is the tar itself, for
 * TOC formats the concatenation of the chunks' contents in blob order. Span `i` covers the stream from the sum of the
 * lengths before it. Its *payload* is the part of its stream that the entries' extents cover, in stream order, and that is
 * what the pieces (whose lengths sum up to it) verify, wherever the bytes came from.
 */
export interface IndexSpan {
  /** Sum of the segments' lengths = decoded bytes. */
  readonly streamLength: number;
  readonly segments: readonly SpanSegment[];
  readonly pieces: readonly SpanPiece[];
  /** Present only for `gzip` and `soci` spans. */
  readonly checkpoint: PackedCheckpoint | undefined;
}

/** All that is needed to build the layer image and to fill it without the whole blob. */
export interface LayerIndex {
  readonly layer: Digest;
  readonly blobSize: number;
  /** Digest of the uncompressed tar where whoever built the index has seen it. */
  readonly diffId: Digest | undefined;
  readonly format: LayerFormat;
  /** In stream order of their extents. */
  readonly entries: readonly LayerEntry[];
  readonly spans: readonly IndexSpan[];
  /** Spans before this one are the image's own priorities (landmark); 0 = none. */
  readonly prioritySpans: number;
}

/** Closed set of reasons why a layer, its index or its TOC is refused. */
export type LayerErrorCode = 'malformed' | 'too-large' | 'escapes' | 'digest-mismatch' | 'unsupported';

export class LayerError extends Error {
  override readonly name = 'LayerError';
  readonly code: LayerErrorCode;
  constructor(code: LayerErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** Bounds on what a layer may ask of us; each stands in an error message when it is passed. */
export const LAYER_LIMITS = {
  /** Entries of a layer: the largest real layers have about 300,000. */
  entries: 2_000_000,
  /** Bytes of a path; Linux's PATH_MAX. */
  pathBytes: 4096,
  /** Bytes of one path part; Linux's NAME_MAX. */
  nameBytes: 255,
  /** Nesting of directories. */
  depth: 256,
  /** Bytes of all xattrs of an entry; what EROFS inlines. */
  xattrBytes: 64 * 1024,
  /** Bytes of the layer image's data area: sparse files may claim much, the address space is ours. */
  imageBytes: 2 ** 42,
  /** Decoded bytes of a span. */
  spanBytes: 16 * 1024 * 1024,
  /** Bytes of a TOC or of a decoded index. */
  indexBytes: 512 * 1024 * 1024,
} as const;
