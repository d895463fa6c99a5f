import { type EntryType, type Extent, LAYER_LIMITS, type LayerEntry, LayerError } from '#shared/layer/layer-index.ts';
import { KeptBytes } from './kept-bytes.ts';
import { type PaxRecords, parsePaxRecords, paxXattrs } from './pax-records.ts';
import {
  fragmentsOfBlock,
  fragmentsOfNumbers,
  type SparseFragment,
  SparseMapText,
  sparseExtents,
} from './sparse-map.ts';
import { isZeroBlock, parseTarHeader, TAR_BLOCK_BYTES, TAR_FIELDS, type TarHeader } from './tar-header.ts';
import { decimal, paxTime, tarNumber } from './tar-number.ts';
import { cleanPath } from './tar-path.ts';

/** What a TarReader calls, in stream order, from within `push`. */
export interface TarSink {
  /** A complete entry, before its payload passes: its extents (stream offsets included) are final. */
  entry(entry: LayerEntry): void;
  /** A run of the last entry's stored content; a slice of the chunk that was pushed, not a copy. */
  payload?(bytes: Uint8Array, streamOffset: number): void;
}

/** Bytes of a PAX header or a long name; Go's archive/tar has the same bound. */
const MAX_META_BYTES = 1024 * 1024;

const TYPES: Readonly<Record<string, EntryType>> = {
  '0': 'file',
  '7': 'file',
  S: 'file',
  '1': 'hardlink',
  '2': 'symlink',
  '3': 'character',
  '4': 'block',
  '5': 'directory',
  '6': 'fifo',
};

type State =
  | { readonly at: 'header' }
  | { readonly at: 'zero-block' }
  | { readonly at: 'meta'; readonly type: string; readonly size: number }
  | { readonly at: 'sparse-blocks'; readonly header: TarHeader; readonly realSize: number }
  | { readonly at: 'sparse-text'; readonly header: TarHeader; readonly map: SparseMapText }
  | { readonly at: 'done' };

/**
 * Incremental tar parser: ustar, PAX, GNU and star headers, long names, base-256 numbers, all sparse forms, binary
 * xattrs. It agrees with Go's archive/tar, and so with containerd, on what an archive says: PAX global headers change no
 * entry, `LIBARCHIVE.xattr` is not read, a lone zero block that something follows is an error. What follows the end of the
 * archive is ignored.
 */
export class TarReader {
  readonly #sink: TarSink;
  readonly #kept = new KeptBytes();
  #state: State = { at: 'header' };
  /** Position of the next byte to be pushed. */
  #offset = 0;
  /** Where the block being collected, and the header of its entry, begins. */
  #headerOffset = 0;
  /** Bytes to collect before the state machine goes on; collected so far. */
  #want = TAR_BLOCK_BYTES;
  #pending: Buffer | undefined;
  #pendingLength = 0;
  #payloadLeft = 0;
  #paddingLeft = 0;
  #entries = 0;
  #pax: PaxRecords | undefined;
  #longName: Buffer | undefined;
  #longLink: Buffer | undefined;
  #fragments: SparseFragment[] = [];

  constructor(sink: TarSink) {
    this.#sink = sink;
  }

  /** Position in the stream after all that was pushed. */
  get streamOffset(): number {
    return this.#offset;
  }

  /** The end-of-archive marker has passed. */
  get finished(): boolean {
    return this.#state.at === 'done';
  }

  /** @throws LayerError; the reader is of no use after it. */
  push(bytes: Uint8Array): void {
    const chunk = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    let at = 0;
    const base = this.#offset;
    while (at < chunk.length) {
      const left = chunk.length - at;
      if (this.#payloadLeft > 0) {
        const length = Math.min(left, this.#payloadLeft);
        this.#sink.payload?.(chunk.subarray(at, at + length), base + at);
        this.#payloadLeft -= length;
        at += length;
      } else if (this.#paddingLeft > 0) {
        const length = Math.min(left, this.#paddingLeft);
        this.#paddingLeft -= length;
        at += length;
      } else if (this.#state.at === 'done') {
        at = chunk.length;
      } else if (this.#pending === undefined && left >= this.#want) {
        const block = chunk.subarray(at, at + this.#want);
        at += this.#want;
        this.#offset = base + at;
        this.#step(block);
      } else {
        this.#pending ??= Buffer.allocUnsafe(this.#want);
        const length = Math.min(left, this.#want - this.#pendingLength);
        chunk.copy(this.#pending, this.#pendingLength, at, at + length);
        this.#pendingLength += length;
        at += length;
        if (this.#pendingLength === this.#want) {
          const block = this.#pending;
          this.#pending = undefined;
          this.#pendingLength = 0;
          this.#offset = base + at;
          this.#step(block);
        }
      }
    }
    this.#offset = base + chunk.length;
  }

  /** @throws LayerError `malformed` when the stream ends inside an entry. A missing end marker is tolerated. */
  end(): void {
    const betweenEntries =
      (this.#state.at === 'header' || this.#state.at === 'zero-block') &&
      this.#payloadLeft === 0 &&
      this.#pendingLength === 0 &&
      this.#pax === undefined &&
      this.#longName === undefined &&
      this.#longLink === undefined;
    if (this.#state.at !== 'done' && !betweenEntries) {
      throw new LayerError(
        'malformed',
        `Cannot read the tar: it ends at byte ${this.#offset} inside the entry at ${this.#headerOffset}`,
      );
    }
  }

  /** Takes the `#want` bytes that were collected; `#offset` is the position after them. */
  #step(block: Buffer): void {
    const state = this.#state;
    switch (state.at) {
      case 'header':
      case 'zero-block':
        this.#headerOffset = this.#offset - TAR_BLOCK_BYTES;
        if (isZeroBlock(block)) this.#state = { at: state.at === 'header' ? 'zero-block' : 'done' };
        else if (state.at === 'zero-block') {
          throw new LayerError(
            'malformed',
            `Cannot read the tar: data after the zero block before ${this.#headerOffset}`,
          );
        } else this.#header(parseTarHeader(block, `at byte ${this.#headerOffset}`), block);
        return;
      case 'meta':
        this.#meta(state.type, block.subarray(0, state.size));
        this.#expectHeader();
        return;
      case 'sparse-blocks':
        fragmentsOfBlock(block, 0, 21, this.#fragments);
        if (block[504] === 0) this.#emit(state.header, this.#fragments, state.realSize, state.header.size);
        return;
      case 'sparse-text': {
        const left = state.header.size - TAR_BLOCK_BYTES;
        if (left < 0) {
          throw new LayerError(
            'malformed',
            `Cannot read the tar: sparse entry at ${this.#headerOffset} has no whole map`,
          );
        }
        const header = { ...state.header, size: left };
        if (state.map.push(block)) this.#emit(header, state.map.fragments, this.#sparseSize(), left);
        else this.#state = { at: 'sparse-text', header, map: state.map };
        return;
      }
      case 'done':
        return;
    }
  }

  #expectHeader(): void {
    this.#state = { at: 'header' };
    this.#want = TAR_BLOCK_BYTES;
  }

  #header(header: TarHeader, block: Buffer): void {
    if (header.size < 0) {
      throw new LayerError('malformed', `Cannot read the tar: the entry at ${this.#headerOffset} has a negative size`);
    }
    if (header.type === 'x' || header.type === 'g' || header.type === 'L' || header.type === 'K') {
      if (header.size > MAX_META_BYTES) {
        throw new LayerError(
          'too-large',
          `Cannot read the tar: a header of ${header.size} bytes at ${this.#headerOffset}`,
        );
      }
      if (header.size === 0) {
        this.#meta(header.type, Buffer.alloc(0));
        return;
      }
      this.#state = { at: 'meta', type: header.type, size: header.size };
      this.#want = roundUp(header.size);
      return;
    }
    const size = this.#paxNumber('size') ?? header.size;
    const merged: TarHeader = { ...header, size };
    if (header.type === 'S') {
      this.#fragments = [];
      fragmentsOfBlock(block, TAR_FIELDS.gnuSparse.at, 4, this.#fragments);
      const realSize = tarNumber(block, TAR_FIELDS.gnuRealSize, 'the real size of a sparse file');
      if (block[TAR_FIELDS.gnuIsExtended.at] === 0) this.#emit(merged, this.#fragments, realSize, size);
      else this.#state = { at: 'sparse-blocks', header: merged, realSize };
      return;
    }
    const regular = header.type === '0' || header.type === '7';
    const records = this.#pax;
    if (regular && records !== undefined) {
      if (records.values.get('GNU.sparse.major')?.toString('latin1') === '1') {
        this.#state = { at: 'sparse-text', header: merged, map: new SparseMapText() };
        return;
      }
      const map = records.values.get('GNU.sparse.map')?.toString('latin1');
      const numbers = map === undefined ? records.sparse : map === '' ? [] : map.split(',');
      if (map !== undefined || numbers.length > 0) {
        this.#emit(merged, fragmentsOfNumbers(numbers), this.#sparseSize(), size);
        return;
      }
    }
    this.#emit(merged, undefined, size, regular ? size : 0);
  }

  #meta(type: string, body: Buffer): void {
    if (type === 'x') this.#pax = parsePaxRecords(Buffer.from(body));
    else if (type === 'g') parsePaxRecords(body);
    else {
      const end = body.indexOf(0);
      const name = Buffer.from(end < 0 ? body : body.subarray(0, end));
      if (type === 'L') this.#longName = name;
      else this.#longLink = name;
    }
  }

  /** Hands on the entry whose `stored` bytes begin at `#offset`. `fragments` = undefined for a file without holes. */
  #emit(header: TarHeader, fragments: readonly SparseFragment[] | undefined, size: number, stored: number): void {
    const type = TYPES[header.type];
    const path = cleanPath(this.#longName ?? this.#paxText('GNU.sparse.name') ?? this.#paxText('path') ?? header.name);
    const shown = JSON.stringify(path.subarray(0, 200).toString('utf8'));
    if (type === undefined) {
      throw new LayerError(
        'unsupported',
        `Cannot take the tar entry ${shown}: its type is ${JSON.stringify(header.type)}`,
      );
    }
    if (++this.#entries > LAYER_LIMITS.entries) {
      throw new LayerError('too-large', `Cannot take a layer of more than ${LAYER_LIMITS.entries} entries`);
    }
    const link = this.#longLink ?? this.#paxText('linkpath') ?? header.linkName;
    const time = this.#paxText('mtime')?.toString('latin1');
    const [mtimeSeconds, mtimeNanoseconds] = time === undefined ? [header.mtime, 0] : paxTime(time);
    const xattrs = this.#xattrs();
    const xattrBytes = xattrs.reduce((sum, [name, value]) => sum + name.length + value.length, 0);
    if (xattrBytes > LAYER_LIMITS.xattrBytes) {
      throw new LayerError('too-large', `Cannot take the tar entry ${shown}: ${xattrBytes} bytes of xattrs`);
    }
    const device = type === 'character' || type === 'block';
    const entry: LayerEntry = {
      path: this.#kept.keep(path),
      type,
      mode: header.mode & 0o7777,
      uid: this.#paxNumber('uid') ?? header.uid,
      gid: this.#paxNumber('gid') ?? header.gid,
      mtimeSeconds,
      mtimeNanoseconds,
      size: type === 'file' ? size : 0,
      linkName:
        type === 'symlink' || type === 'hardlink'
          ? this.#kept.keep(type === 'symlink' ? link : cleanPath(link))
          : NO_BYTES,
      deviceMajor: device ? header.deviceMajor : 0,
      deviceMinor: device ? header.deviceMinor : 0,
      xattrs,
      extents:
        type !== 'file'
          ? NO_EXTENTS
          : fragments !== undefined
            ? sparseExtents(fragments, size, stored, this.#offset)
            : size === 0
              ? NO_EXTENTS
              : [{ fileOffset: 0, streamOffset: this.#offset, length: size }],
    };
    this.#pax = undefined;
    this.#longName = undefined;
    this.#longLink = undefined;
    this.#payloadLeft = stored;
    this.#paddingLeft = roundUp(stored) - stored;
    this.#expectHeader();
    this.#sink.entry(entry);
  }

  #xattrs(): LayerEntry['xattrs'] {
    const found = this.#pax === undefined ? [] : paxXattrs(this.#pax);
    if (found.length === 0) return NO_XATTRS;
    return found.map(([name, value]) => [this.#kept.keep(name), this.#kept.keep(value)]);
  }

  #paxText(key: string): Buffer | undefined {
    const value = this.#pax?.values.get(key);
    return value === undefined || value.length === 0 ? undefined : value;
  }

  #paxNumber(key: string): number | undefined {
    const value = this.#paxText(key);
    return value === undefined ? undefined : decimal(value.toString('latin1'), `PAX ${key}`);
  }

  #sparseSize(): number {
    const size = this.#paxNumber('GNU.sparse.realsize') ?? this.#paxNumber('GNU.sparse.size');
    if (size === undefined) {
      throw new LayerError('malformed', `Cannot read the tar: sparse entry at ${this.#headerOffset} has no real size`);
    }
    return size;
  }
}

const NO_BYTES = Buffer.alloc(0);
const NO_EXTENTS: readonly Extent[] = [];
const NO_XATTRS: LayerEntry['xattrs'] = [];

function roundUp(size: number): number {
  return Math.ceil(size / TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES;
}
