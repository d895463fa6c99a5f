import { isUtf8 } from 'node:buffer';
import { createHash, type Hash } from 'node:crypto';
import { tocTypeName } from '#shared/formats/toc/toc-types.ts';
import type { LayerEntry } from '#shared/layer/layer-index.ts';
import { TAR_BLOCK_BYTES } from '#shared/tar/tar-header.ts';
import { ConvertError } from './convert-error.ts';
import type { MemberWriter } from './member-writer.ts';
import type { TarEvent } from './tar-events.ts';

/**
 * A reader of one page waits for its whole chunk to be fetched and decoded: a cold start of python read 35 MiB with 1 MiB, 41 MiB
 * with the 4 MiB of eStargz's own tools.
 */
export const DEFAULT_CHUNK_BYTES = 1024 * 1024;

/** As JSON has it; `offset` and `endOffset` come when the member has been written. */
interface TocEntry {
  readonly name: string;
  readonly type: string;
  digest?: string;
  chunkDigest?: string;
  chunkOffset?: number;
  chunkSize?: number;
  innerOffset?: number;
  offset?: number;
  endOffset?: number;
  [field: string]: unknown;
}

export interface TocWriterOptions {
  readonly chunkSize: number;
  readonly minChunkSize: number;
  /** zstd:chunked: the headers between two files have frames of their own, and each entry says where its frames end. */
  readonly withEnds: boolean;
}

interface OpenFile {
  readonly entry: TocEntry;
  readonly size: number;
  readonly hash: Hash;
  chunk: TocEntry;
  chunkHash: Hash;
  chunkLength: number;
  done: number;
  readonly chunks: TocEntry[];
}

/** Puts entries and contents into members, one for each chunk, and keeps the TOC that says where they are. */
export class TocWriter {
  readonly #members: MemberWriter;
  readonly #options: TocWriterOptions;
  readonly #entries: TocEntry[] = [];
  #file: OpenFile | undefined;
  #padding = 0;

  constructor(members: MemberWriter, options: TocWriterOptions) {
    this.#members = members;
    this.#options = options;
  }

  async take(event: TarEvent): Promise<void> {
    if (event.kind === 'entry') await this.#entry(event.entry, event.header);
    else await this.#content(event.bytes);
  }

  /** A file of one byte that says something to readers, in a member of its own. */
  async landmark(entry: LayerEntry, header: Buffer): Promise<void> {
    await this.#entry(entry, header);
    await this.#members.cut();
    await this.#content(Buffer.from([0x0f]));
    await this.pad();
    await this.#members.cut();
  }

  /** The padding of the last file. */
  async pad(): Promise<void> {
    if (this.#padding > 0) await this.#members.write(Buffer.alloc(this.#padding));
    this.#padding = 0;
  }

  /** The JSON; only when all members have been written. */
  json(): Buffer {
    return Buffer.from(JSON.stringify({ version: 1, entries: this.#entries }, undefined, '\t'));
  }

  async #entry(entry: LayerEntry, header: Buffer): Promise<void> {
    await this.pad();
    await this.#members.write(header);
    const toc = tocEntry(entry);
    this.#entries.push(toc);
    if (entry.size === 0) return;
    this.#file = {
      entry: toc,
      size: entry.size,
      hash: createHash('sha256'),
      chunk: toc,
      chunkHash: createHash('sha256'),
      chunkLength: 0,
      done: 0,
      chunks: [],
    };
  }

  async #content(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      const file = this.#file;
      if (file === undefined) throw new Error('content without a file');
      if (file.chunkLength === 0) await this.#openChunk(file);
      const length = Math.min(bytes.length - at, this.#options.chunkSize - file.chunkLength, file.size - file.done);
      const part = bytes.subarray(at, at + length);
      await this.#members.write(part);
      file.hash.update(part);
      file.chunkHash.update(part);
      file.chunkLength += length;
      file.done += length;
      at += length;
      if (file.chunkLength === this.#options.chunkSize || file.done === file.size) await this.#closeChunk(file);
    }
  }

  async #openChunk(file: OpenFile): Promise<void> {
    // Files smaller than that share a member.
    if (this.#members.memberLength >= this.#options.minChunkSize) await this.#members.cut();
    if (this.#members.memberLength > 0) file.chunk.innerOffset = this.#members.memberLength;
    const { chunk, entry } = file;
    this.#members.place((start, end) => {
      chunk.offset = start;
      // The chunks of a file come one after another: the last one has the last word.
      if (this.#options.withEnds) entry.endOffset = end;
    });
    file.chunks.push(file.chunk);
  }

  async #closeChunk(file: OpenFile): Promise<void> {
    const { chunk } = file;
    chunk.chunkDigest = `sha256:${file.chunkHash.digest('hex')}`;
    const isLast = file.done === file.size;
    // The last chunk goes to the end of the file and needs no size, but readers of zstd:chunked want it.
    if (!isLast || (this.#options.withEnds && file.chunks.length > 1)) chunk.chunkSize = file.chunkLength;
    if (this.#options.withEnds) await this.#members.cut();
    if (isLast) {
      file.entry.digest = `sha256:${file.hash.digest('hex')}`;
      this.#padding = (TAR_BLOCK_BYTES - (file.size % TAR_BLOCK_BYTES)) % TAR_BLOCK_BYTES;
      this.#file = undefined;
      return;
    }
    const next: TocEntry = { name: file.entry.name, type: 'chunk', chunkOffset: file.done };
    this.#entries.push(next);
    file.chunk = next;
    file.chunkHash = createHash('sha256');
    file.chunkLength = 0;
  }
}

function tocEntry(entry: LayerEntry): TocEntry {
  const isLink = entry.type === 'symlink' || entry.type === 'hardlink';
  const isDevice = entry.type === 'character' || entry.type === 'block';
  // JSON has no other text: such a name would come back as another one.
  if (!isUtf8(entry.path) || (isLink && !isUtf8(entry.linkName))) {
    throw new ConvertError(
      'unsupported',
      `Cannot convert the layer: the name of ${JSON.stringify(entry.path.toString())} is not UTF-8, which a TOC cannot say`,
    );
  }
  const path = entry.path.toString();
  return {
    name: entry.type === 'directory' ? `${path}/` : path,
    type: tocTypeName(entry.type),
    ...(entry.size > 0 ? { size: entry.size } : {}),
    modtime: modtime(entry),
    ...(isLink ? { linkName: entry.linkName.toString() } : {}),
    mode: entry.mode,
    uid: entry.uid,
    gid: entry.gid,
    ...(isDevice ? { devMajor: entry.deviceMajor, devMinor: entry.deviceMinor } : {}),
    ...(entry.xattrs.length > 0
      ? { xattrs: Object.fromEntries(entry.xattrs.map(([name, value]) => [name.toString(), value.toString('base64')])) }
      : {}),
  };
}

/** RFC 3339 has years 0 to 9999; other times are the epoch, as Go writes them. */
function modtime(entry: LayerEntry): string {
  const date = new Date(entry.mtimeSeconds * 1000);
  const year = date.getUTCFullYear();
  if (Number.isNaN(year) || year < 1 || year > 9999) return '1970-01-01T00:00:00Z';
  const seconds = date.toISOString().slice(0, 19);
  const fraction = entry.mtimeNanoseconds === 0 ? '' : `.${String(entry.mtimeNanoseconds).padStart(9, '0')}`;
  return `${seconds}${fraction}Z`;
}
