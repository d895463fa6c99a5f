import { type EntryType, type Extent, LAYER_LIMITS, type LayerEntry, LayerError } from './layer-index.ts';
import { VarintReader } from './varint-reader.ts';
import { VarintWriter } from './varint-writer.ts';

const TYPES: readonly EntryType[] = ['file', 'directory', 'symlink', 'hardlink', 'character', 'block', 'fifo'];
const NO_BYTES = Buffer.alloc(0);
const NO_EXTENTS: readonly Extent[] = [];
type Xattrs = LayerEntry['xattrs'];
const NO_XATTRS: Xattrs = [];

/**
 * Columns of the entries, one value after the other (v = varint, z = signed varint):
 *
 *  0 type v                      1 mode v, the difference from the entry before z for 2 uid, 3 gid, 4 seconds; 5 nanoseconds v
 *  6 size v (files)              7 bytes of the path shared with the path before v   8 length of the rest v   9 the rests
 * 10 length of the link name v (links)   11 link names   12 major v, minor v (devices)
 * 13 number of the xattr set v (0 = none, else 1 + its number)
 * 14 sets: count v, then of each: count v, then of each: length of the name v, name, length of the value v, value
 * 15 extents (files) v: 0 = none, 1 = the whole file, n = n - 1 extents
 * 16 for the whole file: stream offset less the end of the extent before v; else for each extent v v v: file offset less the
 *    end of the one before in the file, stream offset less the end of the one before, length
 */
const COLUMNS = 17;

/** @throws LayerError `malformed` when extents do not ascend or a number cannot be stored. */
export function encodeEntries(entries: readonly LayerEntry[], out: VarintWriter): void {
  const columns = Array.from({ length: COLUMNS }, () => new VarintWriter());
  const column = (i: number): VarintWriter => columns[i] ?? out;
  const sets = new Map<string, number>();
  const setBytes = new VarintWriter();
  let before: Pick<LayerEntry, 'uid' | 'gid' | 'mtimeSeconds' | 'path'> = {
    uid: 0,
    gid: 0,
    mtimeSeconds: 0,
    path: NO_BYTES,
  };
  let streamEnd = 0;
  for (const entry of entries) {
    column(0).whole(TYPES.indexOf(entry.type));
    column(1).whole(entry.mode);
    column(2).signed(entry.uid - before.uid);
    column(3).signed(entry.gid - before.gid);
    column(4).signed(entry.mtimeSeconds - before.mtimeSeconds);
    column(5).whole(entry.mtimeNanoseconds);
    const shared = sharedPrefix(before.path, entry.path);
    column(7).whole(shared);
    column(8).whole(entry.path.length - shared);
    column(9).bytes(entry.path.subarray(shared));
    if (entry.type === 'symlink' || entry.type === 'hardlink') {
      column(10).whole(entry.linkName.length);
      column(11).bytes(entry.linkName);
    } else if (entry.type === 'character' || entry.type === 'block') {
      column(12).whole(entry.deviceMajor);
      column(12).whole(entry.deviceMinor);
    }
    column(13).whole(xattrSet(entry.xattrs, sets, setBytes));
    if (entry.type === 'file') {
      column(6).whole(entry.size);
      streamEnd = encodeExtents(entry, streamEnd, column(15), column(16));
    }
    before = entry;
  }
  column(14).whole(sets.size);
  column(14).bytes(setBytes.written);
  out.whole(entries.length);
  out.whole(entries.reduce((sum, { path }) => sum + path.length, 0));
  for (const { length } of columns) out.whole(length);
  for (const { written } of columns) out.bytes(written);
}

function encodeExtents(entry: LayerEntry, streamStart: number, counts: VarintWriter, extents: VarintWriter): number {
  const [first] = entry.extents;
  if (first === undefined) {
    counts.whole(0);
    return streamStart;
  }
  if (entry.extents.length === 1 && first.fileOffset === 0 && first.length === entry.size) {
    counts.whole(1);
    extents.whole(first.streamOffset - streamStart);
    return first.streamOffset + first.length;
  }
  counts.whole(1 + entry.extents.length);
  let fileEnd = 0;
  let streamEnd = streamStart;
  for (const { fileOffset, streamOffset, length } of entry.extents) {
    extents.whole(fileOffset - fileEnd);
    extents.whole(streamOffset - streamEnd);
    extents.whole(length);
    fileEnd = fileOffset + length;
    streamEnd = streamOffset + length;
  }
  return streamEnd;
}

/** The number of the set, 0 for none; a new one is appended to `out`. */
function xattrSet(xattrs: Xattrs, sets: Map<string, number>, out: VarintWriter): number {
  if (xattrs.length === 0) return 0;
  const set = new VarintWriter();
  set.whole(xattrs.length);
  for (const [name, value] of xattrs) {
    set.whole(name.length);
    set.bytes(name);
    set.whole(value.length);
    set.bytes(value);
  }
  const key = set.written.toString('latin1');
  const known = sets.get(key);
  if (known !== undefined) return known;
  sets.set(key, sets.size + 1);
  out.bytes(set.written);
  return sets.size;
}

/** @throws LayerError `malformed`, `too-large` */
export function decodeEntries(input: VarintReader): LayerEntry[] {
  const count = input.count('entries', LAYER_LIMITS.entries);
  const pathBytes = input.count('bytes of paths', LAYER_LIMITS.indexBytes);
  const lengths = Array.from({ length: COLUMNS }, () => input.whole());
  const columns = lengths.map((length) => new VarintReader(input.bytes(length)));
  const column = (i: number): VarintReader => columns[i] ?? input;
  // Each entry has at least a byte in the column of types: the list cannot outgrow the input.
  if (count > column(0).left) throw malformed('it has fewer entries than it says');
  const sets = decodeXattrSets(column(14));
  const paths = Buffer.allocUnsafeSlow(pathBytes);
  const [types, modes, uids, gids] = [column(0), column(1), column(2), column(3)];
  const [times, nanoseconds, sizes, shares] = [column(4), column(5), column(6), column(7)];
  const [rests, restBytes, setNumbers, counts, extents] = [column(8), column(9), column(13), column(15), column(16)];
  const entries: LayerEntry[] = [];
  let [uid, gid, mtimeSeconds, streamEnd, pathStart, pathEnd] = [0, 0, 0, 0, 0, 0];
  for (let i = 0; i < count; i++) {
    const type = TYPES[types.whole()];
    if (type === undefined) throw malformed('an entry has an unknown type');
    uid += uids.signed();
    gid += gids.signed();
    mtimeSeconds += times.signed();
    const shared = shares.whole();
    const rest = rests.whole();
    if (shared > pathEnd - pathStart || pathEnd + shared + rest > pathBytes)
      throw malformed('a path leaves its bounds');
    paths.copyWithin(pathEnd, pathStart, pathStart + shared);
    pathStart = pathEnd;
    restBytes.bytes(rest).copy(paths, pathStart + shared);
    pathEnd = pathStart + shared + rest;
    const link = type === 'symlink' || type === 'hardlink';
    const device = type === 'character' || type === 'block';
    const setNumber = setNumbers.whole();
    const xattrs = setNumber === 0 ? NO_XATTRS : sets[setNumber - 1];
    if (xattrs === undefined) throw malformed('an entry has unknown xattrs');
    const size = type === 'file' ? sizes.whole() : 0;
    const own = type === 'file' ? decodeExtents(counts.whole(), size, streamEnd, extents) : NO_EXTENTS;
    const last = own.at(-1);
    if (last !== undefined) streamEnd = last.streamOffset + last.length;
    entries.push({
      path: paths.subarray(pathStart, pathEnd),
      type,
      mode: modes.whole(),
      uid,
      gid,
      mtimeSeconds,
      mtimeNanoseconds: nanoseconds.whole(),
      size,
      linkName: link ? column(11).bytes(column(10).whole()) : NO_BYTES,
      deviceMajor: device ? column(12).whole() : 0,
      deviceMinor: device ? column(12).whole() : 0,
      xattrs,
      extents: own,
    });
  }
  if (columns.some(({ left }) => left > 0)) throw malformed('a column is longer than its entries');
  return entries;
}

function decodeExtents(code: number, size: number, streamStart: number, input: VarintReader): readonly Extent[] {
  if (code === 0) return NO_EXTENTS;
  if (code === 1) return [{ fileOffset: 0, streamOffset: streamStart + input.whole(), length: size }];
  if (code - 1 > input.left) throw malformed('a file has fewer extents than it says');
  const extents: Extent[] = [];
  let fileEnd = 0;
  let streamEnd = streamStart;
  for (let i = 1; i < code; i++) {
    const fileOffset = fileEnd + input.whole();
    const streamOffset = streamEnd + input.whole();
    const length = input.whole();
    extents.push({ fileOffset, streamOffset, length });
    fileEnd = fileOffset + length;
    streamEnd = streamOffset + length;
  }
  return extents;
}

function decodeXattrSets(input: VarintReader): Xattrs[] {
  const sets: Xattrs[] = [];
  for (let count = input.count('sets of xattrs', input.left); count > 0; count--) {
    const set: (readonly [Buffer, Buffer])[] = [];
    for (let left = input.count('xattrs', input.left); left > 0; left--) {
      const name = input.bytes(input.whole());
      set.push([name, input.bytes(input.whole())]);
    }
    sets.push(set);
  }
  return sets;
}

function sharedPrefix(a: Buffer, b: Buffer): number {
  const end = Math.min(a.length, b.length);
  let i = 0;
  while (i < end && a[i] === b[i]) i++;
  return i;
}

function malformed(why: string): LayerError {
  return new LayerError('malformed', `Cannot read the index: ${why}`);
}
