import { type Digest, isDigest } from '#shared/digest/digest.ts';
import { parseModtime } from '#shared/formats/toc/toc-entry.ts';
import { tocTypeOf } from '#shared/formats/toc/toc-types.ts';
import { type EntryType, type Extent, LAYER_LIMITS, type LayerEntry, LayerError } from '#shared/layer/layer-index.ts';
import { cleanPath } from '#shared/tar/tar-path.ts';
import { FlatBuffer, type FlatTable } from './flat-buffer.ts';

/** A SOCI zTOC: what a tar holds and where, and how to get at it in the blob. */
export interface Ztoc {
  readonly blobSize: number;
  /** Bytes of the tar up to its end marker. */
  readonly streamSize: number;
  readonly entries: readonly LayerEntry[];
  /** Of each span's range of the blob. */
  readonly spanDigests: readonly Digest[];
  /** By gzip; else the blob is the tar. */
  readonly isCompressed: boolean;
  /** See `parseZinfo` and `parseTarZinfo`. */
  readonly checkpoints: Buffer;
}

/** Fields in the order of https://github.com/awslabs/soci-snapshotter/blob/main/ztoc/fbs/ztoc.fbs */
const ZTOC = { version: 0, blobSize: 2, streamSize: 3, toc: 4, compression: 5 } as const;
const TOC = { entries: 0 } as const;
const COMPRESSION = { algorithm: 0, lastSpan: 1, digests: 2, checkpoints: 3 } as const;
const XATTR = { key: 0, value: 1 } as const;
const ENTRY = {
  name: 0,
  type: 1,
  streamOffset: 2,
  size: 3,
  linkName: 4,
  mode: 5,
  uid: 6,
  gid: 7,
  modTime: 10,
  deviceMajor: 11,
  deviceMinor: 12,
  records: 13,
} as const;

/** The only one there is. */
const VERSION = '0.9';
/** `CompressionAlgorithm` of ztoc.fbs. */
const GZIP = 1;
const UNCOMPRESSED = 2;
const MAX_DEVICE_MAJOR = 2 ** 12 - 1;
const MAX_DEVICE_MINOR = 2 ** 20 - 1;
const XATTR_PREFIX = 'SCHILY.xattr.';
const SPARSE_PREFIX = 'GNU.sparse.';
const NO_BYTES = Buffer.alloc(0);
const NO_EXTENTS: readonly Extent[] = [];

/**
 * Parses a zTOC; everything that a tar says of an entry is in it. The names of owner and group are not looked at, the ids count.
 *
 * @throws LayerError `malformed`, `too-large`, `escapes`; `unsupported` for another version, for blobs that are neither gzip nor a tar, and where an
 * entry is sparse (a zTOC does not say where its holes are)
 */
export function parseZtoc(bytes: Uint8Array): Ztoc {
  try {
    return read(new FlatBuffer(bytes).root());
  } catch (cause) {
    if (!(cause instanceof RangeError)) throw cause;
    throw new LayerError('malformed', 'it points out of itself', { cause });
  }
}

function read(root: FlatTable): Ztoc {
  const version = root.bytes(ZTOC.version).toString('latin1', 0, 16);
  if (version !== VERSION) throw new LayerError('unsupported', `its version is ${JSON.stringify(version)}`);
  const compression = root.table(ZTOC.compression);
  const toc = root.table(ZTOC.toc);
  if (compression === undefined || toc === undefined) throw malformed('it lacks its list of files or of spans');
  const algorithm = compression.int8(COMPRESSION.algorithm, GZIP);
  if (algorithm !== GZIP && algorithm !== UNCOMPRESSED) {
    throw new LayerError('unsupported', `it describes a blob that is neither gzip nor a tar (${algorithm})`);
  }
  const count = toc.count(TOC.entries);
  if (count > LAYER_LIMITS.entries) {
    throw new LayerError('too-large', `it has ${count} entries, at most ${LAYER_LIMITS.entries}`);
  }
  const spanDigests: Digest[] = [];
  for (const text of compression.strings(COMPRESSION.digests)) {
    const digest = text.toString('latin1');
    if (!isDigest(digest))
      throw malformed(`the digest of span ${spanDigests.length} is not "sha256:" and 64 hex digits`);
    spanDigests.push(digest);
  }
  if (compression.int32(COMPRESSION.lastSpan) !== spanDigests.length - 1) {
    throw malformed(`its last span is not the last of ${spanDigests.length} digests`);
  }
  const entries: LayerEntry[] = [];
  for (const table of toc.tables(TOC.entries)) {
    try {
      entries.push(readEntry(table));
    } catch (error) {
      if (!(error instanceof LayerError)) throw error;
      throw new LayerError(error.code, `entry ${entries.length}: ${error.message}`, { cause: error });
    }
  }
  return {
    blobSize: root.int64(ZTOC.blobSize),
    streamSize: root.int64(ZTOC.streamSize),
    entries,
    spanDigests,
    isCompressed: algorithm === GZIP,
    checkpoints: compression.bytes(COMPRESSION.checkpoints),
  };
}

function readEntry(table: FlatTable): LayerEntry {
  const typeName = table.bytes(ENTRY.type).toString('latin1', 0, 16);
  const type = tocTypeOf(typeName);
  if (type === undefined) throw new LayerError('unsupported', `its type is ${JSON.stringify(typeName)}`);
  const time = parseModtime(table.bytes(ENTRY.modTime).toString('latin1', 0, 64));
  const streamOffset = table.int64(ENTRY.streamOffset);
  const size = type === 'file' ? bounded(table.int64(ENTRY.size), LAYER_LIMITS.imageBytes, 'size') : 0;
  const device = type === 'character' || type === 'block';
  return {
    path: cleanPath(table.bytes(ENTRY.name)),
    type,
    mode: table.int64(ENTRY.mode) & 0o7777,
    uid: table.uint32(ENTRY.uid),
    gid: table.uint32(ENTRY.gid),
    mtimeSeconds: time.seconds,
    mtimeNanoseconds: time.nanoseconds,
    size,
    linkName: linkName(table, type),
    deviceMajor: device ? bounded(table.int64(ENTRY.deviceMajor), MAX_DEVICE_MAJOR, 'major device number') : 0,
    deviceMinor: device ? bounded(table.int64(ENTRY.deviceMinor), MAX_DEVICE_MINOR, 'minor device number') : 0,
    xattrs: xattrsOf(table),
    extents: size === 0 ? NO_EXTENTS : [{ fileOffset: 0, streamOffset, length: size }],
  };
}

function linkName(table: FlatTable, type: EntryType): Buffer {
  if (type !== 'symlink' && type !== 'hardlink') return NO_BYTES;
  const target = table.bytes(ENTRY.linkName);
  if (type === 'hardlink') return cleanPath(target);
  if (target.length === 0 || target.length >= LAYER_LIMITS.pathBytes || target.includes(0)) {
    throw malformed('its link target is empty, too long, or has a NUL byte');
  }
  return Buffer.from(target);
}

/** The entry's PAX records are all there; xattrs are those with the prefix that Go and GNU tar write. */
function xattrsOf(table: FlatTable): LayerEntry['xattrs'] {
  const xattrs: (readonly [Buffer, Buffer])[] = [];
  let size = 0;
  for (const record of table.tables(ENTRY.records)) {
    const key = record.bytes(XATTR.key).toString('latin1');
    if (key.startsWith(SPARSE_PREFIX)) throw new LayerError('unsupported', 'it is sparse');
    if (!key.startsWith(XATTR_PREFIX) || key.length === XATTR_PREFIX.length) continue;
    const name = Buffer.from(key.slice(XATTR_PREFIX.length), 'latin1');
    const value = Buffer.from(record.bytes(XATTR.value));
    if (name.includes(0)) throw malformed('the name of an xattr has a NUL byte');
    size += name.length + value.length;
    if (size > LAYER_LIMITS.xattrBytes) {
      throw new LayerError('too-large', `its xattrs have more than ${LAYER_LIMITS.xattrBytes} bytes`);
    }
    xattrs.push([name, value]);
  }
  return xattrs;
}

function bounded(value: number, max: number, what: string): number {
  if (value < 0 || value > max) throw malformed(`its ${what} is ${value}`);
  return value;
}

function malformed(message: string): LayerError {
  return new LayerError('malformed', message);
}
