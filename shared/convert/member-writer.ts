import { createHash } from 'node:crypto';
import type { Digest } from '#shared/digest/digest.ts';

/** A separately compressed part of a blob: a gzip member or a zstd frame. Its place is known once it has been written. */
export interface Member {
  /** From the start of the blob; -1 = not yet. */
  blobOffset: number;
  blobEnd: number;
}

export interface MemberWriterOptions {
  readonly compress: (bytes: Buffer) => Promise<Buffer>;
  readonly sink: (bytes: Uint8Array) => Promise<void>;
  readonly signal: AbortSignal;
}

/** Decoded bytes that are being compressed at a time: some of the largest chunks on each core. */
const IN_FLIGHT_BYTES = 32 * 1024 * 1024;
const IN_FLIGHT_MEMBERS = 64;

/**
 * Cuts a stream into members, compresses several at a time and writes them in order. Memory is bounded by what is in
 * flight; `cut` waits when that is enough.
 */
export class MemberWriter {
  readonly #options: MemberWriterOptions;
  readonly #blobHash = createHash('sha256');
  readonly #tarHash = createHash('sha256');
  #current: Uint8Array[] = [];
  #member: Member = { blobOffset: -1, blobEnd: -1 };
  #memberBytes = 0;
  #position = 0;
  #tarBytes = 0;
  #queue: { readonly bytes: number; readonly done: Promise<void> }[] = [];
  #inFlightBytes = 0;
  #last: Promise<void> = Promise.resolve();

  constructor(options: MemberWriterOptions) {
    this.#options = options;
  }

  /** The member that the next bytes go into. */
  get member(): Member {
    return this.#member;
  }

  /** Decoded bytes in it so far. */
  get memberBytes(): number {
    return this.#memberBytes;
  }

  /** Decoded bytes of all members. */
  get tarBytes(): number {
    return this.#tarBytes;
  }

  /** Takes the bytes over until the next `cut`. */
  append(bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    this.#current.push(bytes);
    this.#memberBytes += bytes.length;
    this.#tarBytes += bytes.length;
    this.#tarHash.update(bytes);
  }

  /** Ends the member, unless nothing is in it. */
  async cut(): Promise<void> {
    if (this.#memberBytes === 0) return;
    const { compress } = this.#options;
    const [only] = this.#current;
    const bytes =
      this.#current.length === 1 && only !== undefined
        ? Buffer.from(only.buffer, only.byteOffset, only.byteLength)
        : Buffer.concat(this.#current, this.#memberBytes);
    await this.#enqueue(bytes.length, this.#member, compress(bytes));
    this.#current = [];
    this.#memberBytes = 0;
    this.#member = { blobOffset: -1, blobEnd: -1 };
  }

  /** Writes what is compressed already and decodes to nothing that counts: footers, skippable frames. */
  async raw(bytes: Buffer): Promise<void> {
    await this.cut();
    await this.#enqueue(bytes.length, { blobOffset: -1, blobEnd: -1 }, Promise.resolve(bytes));
  }

  /** Waits until all is written; every member then knows its place. */
  async settle(): Promise<number> {
    await this.cut();
    await this.#last;
    return this.#position;
  }

  async finish(): Promise<{ readonly digest: Digest; readonly sizeBytes: number; readonly diffId: Digest }> {
    const sizeBytes = await this.settle();
    return {
      digest: `sha256:${this.#blobHash.digest('hex')}` as Digest,
      sizeBytes,
      diffId: `sha256:${this.#tarHash.digest('hex')}` as Digest,
    };
  }

  async #enqueue(bytes: number, member: Member, compressed: Promise<Buffer>): Promise<void> {
    const before = this.#last;
    const done = Promise.all([compressed, before]).then(async ([blob]) => {
      this.#options.signal.throwIfAborted();
      member.blobOffset = this.#position;
      this.#position += blob.length;
      member.blobEnd = this.#position;
      this.#blobHash.update(blob);
      await this.#options.sink(blob);
    });
    // Whoever waits next gets the error; until then it is not unhandled.
    done.catch(() => {});
    this.#last = done;
    this.#queue.push({ bytes, done });
    this.#inFlightBytes += bytes;
    while (this.#queue.length > IN_FLIGHT_MEMBERS || this.#inFlightBytes > IN_FLIGHT_BYTES) {
      const first = this.#queue.shift();
      if (first === undefined) break;
      await first.done;
      this.#inFlightBytes -= first.bytes;
    }
  }
}
