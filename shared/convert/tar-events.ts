import { type LayerEntry, LayerError } from '#shared/layer/layer-index.ts';
import { TAR_BLOCK_BYTES } from '#shared/tar/tar-header.ts';
import { TarReader } from '#shared/tar/tar-reader.ts';
import { tarHeader } from '#shared/tar/tar-writer.ts';

/** A tar as a writer takes it: an entry with the header blocks to write for it, then its `entry.size` bytes of content. */
export type TarEvent =
  | { readonly kind: 'entry'; readonly entry: LayerEntry; readonly header: Buffer }
  | { readonly kind: 'content'; readonly bytes: Uint8Array };

/** What only lazy formats have and each writer makes anew. */
const FORMAT_ENTRIES: ReadonlySet<string> = new Set([
  'stargz.index.json',
  '.prefetch.landmark',
  '.no.prefetch.landmark',
]);

/** Holes are written out, since no lazy format knows them all: a larger sparse file is refused. */
const MAX_SPARSE_BYTES = 16 * 1024 * 1024 * 1024;
const ZEROS = Buffer.alloc(256 * 1024);

/**
 * Reads a tar into events, in its order. Headers are handed on as they are, but for sparse files, which come as plain ones.
 * The end-of-archive marker and what follows it are left out.
 *
 * @throws LayerError for a tar that is malformed.
 */
export async function* tarEvents(tar: AsyncIterable<Uint8Array>, signal: AbortSignal): AsyncGenerator<TarEvent> {
  const splitter = new TarSplitter();
  for await (const chunk of tar) {
    signal.throwIfAborted();
    yield* splitter.push(chunk);
  }
  yield* splitter.end();
}

/** A sparse file: the extent being filled, and the file's bytes handed on. */
interface OpenSparse {
  readonly entry: LayerEntry;
  extent: number;
  done: number;
}

class TarSplitter {
  readonly #reader: TarReader;
  #events: TarEvent[] = [];
  /** The chunk being read, where it begins in the stream, and up to where it has been used. */
  #chunk: Buffer = ZEROS;
  #chunkStart = 0;
  #used = 0;
  /** Raw bytes since the last payload: its padding, then header blocks. */
  #raw: Buffer[] = [];
  #isSkipped = false;
  #sparse: OpenSparse | undefined;
  #stored = 0;

  constructor() {
    this.#reader = new TarReader({
      entry: (entry) => this.#entry(entry),
      payload: (bytes, streamOffset) => this.#payload(bytes, streamOffset),
    });
  }

  *push(bytes: Uint8Array): Generator<TarEvent> {
    this.#chunk = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#chunkStart = this.#used;
    this.#reader.push(bytes);
    this.#gather(this.#chunkStart + bytes.length);
    yield* this.#take();
  }

  *end(): Generator<TarEvent> {
    this.#reader.end();
    this.#closeSparse();
    yield* this.#take();
  }

  *#take(): Generator<TarEvent> {
    const events = this.#events;
    this.#events = [];
    for (const event of events) {
      if (event.kind === 'content' && event.bytes.length === 0) continue;
      yield event;
    }
  }

  /** Keeps the raw bytes up to a position of the stream. */
  #gather(upTo: number): void {
    if (upTo > this.#used && !this.#reader.finished) {
      this.#raw.push(this.#chunk.subarray(this.#used - this.#chunkStart, upTo - this.#chunkStart));
    }
    this.#used = Math.max(this.#used, upTo);
  }

  #entry(entry: LayerEntry): void {
    this.#closeSparse();
    this.#gather(this.#reader.streamOffset);
    const padding = (TAR_BLOCK_BYTES - (this.#stored % TAR_BLOCK_BYTES)) % TAR_BLOCK_BYTES;
    const raw = Buffer.concat(this.#raw).subarray(padding);
    this.#raw = [];
    this.#stored = 0;
    this.#isSkipped = FORMAT_ENTRIES.has(entry.path.toString());
    if (this.#isSkipped) return;
    const [first] = entry.extents;
    const isPlain = entry.size === 0 || (entry.extents.length === 1 && first?.length === entry.size);
    if (isPlain && first?.fileOffset !== undefined && first.fileOffset !== 0)
      throw new Error('an extent past its file');
    if (!isPlain && entry.size > MAX_SPARSE_BYTES) {
      throw new LayerError(
        'too-large',
        `Cannot convert the sparse file ${JSON.stringify(entry.path.toString())}: ${entry.size} bytes, at most ${MAX_SPARSE_BYTES}`,
      );
    }
    if (!isPlain) this.#sparse = { entry, extent: 0, done: 0 };
    this.#events.push({ kind: 'entry', entry, header: isPlain && !isSparseHeader(raw) ? raw : tarHeader(entry) });
  }

  #payload(bytes: Uint8Array, streamOffset: number): void {
    this.#gather(streamOffset);
    this.#used = streamOffset + bytes.length;
    this.#stored += bytes.length;
    if (this.#isSkipped) return;
    if (this.#sparse === undefined) this.#events.push({ kind: 'content', bytes });
    else this.#fill(this.#sparse, bytes, streamOffset);
  }

  /** Puts stored bytes of a sparse file where its extents say. */
  #fill(sparse: OpenSparse, bytes: Uint8Array, streamOffset: number): void {
    let at = 0;
    while (at < bytes.length) {
      const extent = sparse.entry.extents[sparse.extent];
      if (extent === undefined) return;
      const inExtent = streamOffset + at - extent.streamOffset;
      if (inExtent < 0) at = Math.min(bytes.length, at - inExtent);
      else if (inExtent >= extent.length) sparse.extent += 1;
      else {
        this.#zeros(sparse, extent.fileOffset + inExtent);
        const length = Math.min(bytes.length - at, extent.length - inExtent);
        this.#events.push({ kind: 'content', bytes: bytes.subarray(at, at + length) });
        sparse.done += length;
        at += length;
      }
    }
  }

  #zeros(sparse: OpenSparse, upTo: number): void {
    while (sparse.done < upTo) {
      const length = Math.min(ZEROS.length, upTo - sparse.done);
      this.#events.push({ kind: 'content', bytes: ZEROS.subarray(0, length) });
      sparse.done += length;
    }
  }

  #closeSparse(): void {
    if (this.#sparse === undefined) return;
    this.#zeros(this.#sparse, this.#sparse.entry.size);
    this.#sparse = undefined;
  }
}

/** A sparse file that happens to have one extent over all of it still has headers that say it is sparse. */
function isSparseHeader(raw: Buffer): boolean {
  const last = raw.length - TAR_BLOCK_BYTES;
  return (last >= 0 && raw[last + 156] === 0x53) || raw.includes('GNU.sparse.');
}
