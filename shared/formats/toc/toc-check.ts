import { createHash, type Hash } from 'node:crypto';
import type { Digest } from '#shared/digest/digest.ts';
import type { LayerEntry, LayerIndex } from '#shared/layer/layer-index.ts';
import type { TarSink } from '#shared/tar/tar-reader.ts';
import { ExtentCover } from '#shared/formats/stream/extent-cover.ts';

/** What lazy formats add for themselves. Layer trees do not show it, so it may be in one of the two only. */
const ADDED = new Set(['stargz.index.json', '.prefetch.landmark', '.no.prefetch.landmark']);
/** Producers round times to seconds, up or down. */
const TIME_TOLERANCE_SECONDS = 1;
const ZEROS = Buffer.alloc(64 * 1024);

interface Chunk {
  readonly fileOffset: number;
  readonly length: number;
  readonly digest: Digest;
}

interface Listed {
  readonly entry: LayerEntry;
  readonly chunks: readonly Chunk[];
}

/**
 * Compares a table of contents with the tar that its blob decodes to, as that passes: whoever unpacks the layer gets what the tar
 * says, whoever starts it lazily what the table says, and only the tar's digest stands in the image's configuration.
 *
 * The same means: entry for entry, in the same order, the same path, type, owner, mode, size, target, device and xattrs, and each chunk of content with
 * the digest in the table. Not compared are fractions of times, modes of links, empty xattrs, and bytes of names that are not UTF-8: producers differ in them.
 */
export class TocCheck implements Required<TarSink> {
  readonly #listed: readonly Listed[];
  #next = 0;
  /** A layer's root may be listed or not. */
  readonly #root: LayerEntry | undefined;
  #contradiction: string | undefined;
  /** Of the file that passes. */
  #path = '';
  #chunks: readonly Chunk[] = [];
  #chunk = 0;
  readonly #cover = new ExtentCover();
  #fileOffset = 0;
  #hash: Hash | undefined;

  /** @param index made of the table alone */
  constructor(index: Pick<LayerIndex, 'entries' | 'spans'>) {
    const pieces = index.spans.flatMap((span) => span.pieces);
    let piece = 0;
    const listed = index.entries.map((entry) => {
      // A table's chunks are its extents and the pieces of the spans, both in its order.
      const chunks = entry.extents.map(({ fileOffset, length }) => {
        const found = pieces[piece++];
        if (found?.length !== length) throw new Error('An index of a table of contents has an extent without a piece');
        return { fileOffset, length, digest: found.digest };
      });
      return { entry, chunks };
    });
    this.#listed = listed.filter(({ entry }) => !isAdded(entry) && entry.path.length > 0);
    this.#root = index.entries.findLast(({ path }) => path.length === 0);
  }

  entry(entry: LayerEntry): void {
    this.#endFile();
    if (this.#contradiction !== undefined || isAdded(entry)) return;
    this.#path = shown(entry);
    const isRoot = entry.path.length === 0;
    const listed = isRoot ? undefined : this.#listed[this.#next++];
    const expected = isRoot ? (this.#root ?? entry) : listed?.entry;
    if (expected === undefined || !sameText(expected.path, entry.path)) {
      this.#differs(`the table has ${expected === undefined ? 'nothing' : shown(expected)} in its place`);
      return;
    }
    const difference = differenceOf(expected, entry);
    if (difference !== undefined) {
      this.#differs(difference);
      return;
    }
    this.#chunks = listed?.chunks ?? [];
    this.#cover.begin(entry.extents);
    this.#chunk = 0;
    this.#fileOffset = 0;
  }

  payload(bytes: Uint8Array, streamOffset: number): void {
    this.#cover.take(bytes, streamOffset, (part, fileOffset) => {
      this.#hole(fileOffset);
      this.#content(part);
    });
  }

  /** After the tar's end. @returns in what the two differ; undefined where they agree */
  finish(): string | undefined {
    this.#endFile();
    const missing = this.#listed[this.#next];
    if (this.#contradiction === undefined && missing !== undefined) {
      this.#contradiction = `${shown(missing.entry)}: it is not in the tar`;
    }
    return this.#contradiction;
  }

  /** The rest of the file is a hole, or there is none. */
  #endFile(): void {
    const last = this.#chunks.at(-1);
    if (last !== undefined) this.#hole(last.fileOffset + last.length);
    this.#chunks = [];
    this.#cover.begin([]);
  }

  /** What the tar leaves out up to `fileOffset` reads as zeros; the table may say the same or list zeros as content. */
  #hole(fileOffset: number): void {
    while (this.#fileOffset < fileOffset && this.#contradiction === undefined) {
      this.#content(ZEROS.subarray(0, Math.min(ZEROS.length, fileOffset - this.#fileOffset)));
    }
  }

  /** The file's next bytes. */
  #content(bytes: Uint8Array): void {
    let at = 0;
    while (at < bytes.length && this.#contradiction === undefined) {
      const chunk = this.#chunks[this.#chunk];
      const left = bytes.length - at;
      if (chunk === undefined || this.#fileOffset < chunk.fileOffset) {
        const length = chunk === undefined ? left : Math.min(left, chunk.fileOffset - this.#fileOffset);
        if (!isZero(bytes.subarray(at, at + length))) this.#differs('it has content where the table has a hole');
        this.#fileOffset += length;
        at += length;
        continue;
      }
      const length = Math.min(left, chunk.fileOffset + chunk.length - this.#fileOffset);
      this.#hash ??= createHash('sha256');
      this.#hash.update(bytes.subarray(at, at + length));
      this.#fileOffset += length;
      at += length;
      if (this.#fileOffset < chunk.fileOffset + chunk.length) continue;
      const digest = `sha256:${this.#hash.digest('hex')}`;
      this.#hash = undefined;
      this.#chunk += 1;
      if (digest !== chunk.digest) {
        this.#differs(`its content at ${chunk.fileOffset} has the digest ${digest}, the table says ${chunk.digest}`);
      }
    }
  }

  #differs(how: string): void {
    this.#contradiction ??= `${this.#path}: ${how}`;
  }
}

/** JSON has no way to say a name that is not UTF-8: producers put U+FFFD in its place. */
function sameText(listed: Buffer, found: Buffer): boolean {
  return listed.equals(found) || listed.toString('utf8') === found.toString('utf8');
}

function shown({ path }: LayerEntry): string {
  return JSON.stringify(path.subarray(0, 200).toString('utf8'));
}

function isAdded({ path }: LayerEntry): boolean {
  return path.length < 24 && ADDED.has(path.toString('latin1'));
}

function differenceOf(listed: LayerEntry, found: LayerEntry): string | undefined {
  if (listed.type !== found.type) return `it is a ${found.type}, the table says ${listed.type}`;
  for (const field of ['uid', 'gid', 'size', 'deviceMajor', 'deviceMinor'] as const) {
    if (listed[field] !== found[field]) return `its ${field} is ${found[field]}, the table says ${listed[field]}`;
  }
  const isLink = found.type === 'hardlink' || found.type === 'symlink';
  if (!isLink && listed.mode !== found.mode) {
    return `its mode is ${found.mode.toString(8)}, the table says ${listed.mode.toString(8)}`;
  }
  if (!sameText(listed.linkName, found.linkName)) return 'the table has another target of the link';
  if (Math.abs(listed.mtimeSeconds - found.mtimeSeconds) > TIME_TOLERANCE_SECONDS) {
    return `its time is ${found.mtimeSeconds}, the table says ${listed.mtimeSeconds}`;
  }
  return xattrText(listed) === xattrText(found) ? undefined : 'the table has other xattrs';
}

function xattrText({ xattrs }: LayerEntry): string {
  if (xattrs.length === 0) return '';
  return xattrs
    .filter(([, value]) => value.length > 0)
    .map(([name, value]) => `${name.toString('hex')}=${value.toString('hex')}`)
    .sort()
    .join();
}

function isZero(bytes: Uint8Array): boolean {
  for (let at = 0; at < bytes.length; at += ZEROS.length) {
    const part = Math.min(ZEROS.length, bytes.length - at);
    if (!ZEROS.subarray(0, part).equals(bytes.subarray(at, at + part))) return false;
  }
  return true;
}
