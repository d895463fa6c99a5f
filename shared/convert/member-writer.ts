import { createHash, type Hash } from 'node:crypto';
import type { Digest } from '#shared/digest/digest.ts';

/** Compressed members that are being made at the same time; each is compressed on a thread of libuv's pool. */
const MEMBERS_IN_WORK = 4;
/** A member without end (headers of a hundred thousand empty files) is cut here. */
const MAX_MEMBER_BYTES = 8 * 1024 * 1024;

/** Learns where in the blob its member was put, [start, end). */
export type OnPlaced = (start: number, end: number) => void;

interface Member {
  readonly compressed: Promise<Buffer>;
  readonly onPlaced: readonly OnPlaced[];
}

/**
 * Writes bytes as a row of separately compressed members (gzip) or frames (zstd), several compressed at a time, and keeps the
 * digests of both sides.
 */
export class MemberWriter {
  readonly #compress: (bytes: Buffer) => Promise<Buffer>;
  readonly #sink: (bytes: Uint8Array) => Promise<void>;
  readonly #signal: AbortSignal;
  readonly #blob: Hash = createHash('sha256');
  readonly #tar: Hash = createHash('sha256');
  readonly #inWork: Member[] = [];
  #parts: Uint8Array[] = [];
  #onPlaced: OnPlaced[] = [];
  #memberLength = 0;
  /** Bytes of the blob written; final only once `drain` has resolved. */
  sizeBytes = 0;
  uncompressedSize = 0;

  constructor(
    compress: (bytes: Buffer) => Promise<Buffer>,
    sink: (bytes: Uint8Array) => Promise<void>,
    signal: AbortSignal,
  ) {
    this.#compress = compress;
    this.#sink = sink;
    this.#signal = signal;
  }

  /** Decoded bytes of the member that is open. */
  get memberLength(): number {
    return this.#memberLength;
  }

  /** Bytes of the tar; they must not change afterwards. */
  async write(bytes: Uint8Array): Promise<void> {
    this.#parts.push(bytes);
    this.#memberLength += bytes.length;
    this.uncompressedSize += bytes.length;
    this.#tar.update(bytes);
    if (this.#memberLength >= MAX_MEMBER_BYTES && this.#onPlaced.length === 0) await this.cut();
  }

  /** Tells where the member that is open begins and ends, once it is written. */
  place(onPlaced: OnPlaced): void {
    this.#onPlaced.push(onPlaced);
  }

  /** Ends the member, if it has anything in it. */
  async cut(): Promise<void> {
    if (this.#memberLength === 0) return;
    const bytes = Buffer.concat(this.#parts);
    const compressed = this.#compress(bytes);
    // Awaited in its turn; a failure before that must not count as unhandled.
    compressed.catch(() => {});
    this.#inWork.push({ compressed, onPlaced: this.#onPlaced });
    this.#parts = [];
    this.#onPlaced = [];
    this.#memberLength = 0;
    while (this.#inWork.length >= MEMBERS_IN_WORK) await this.#writeFirst();
  }

  /** Waits until everything is in the sink. */
  async drain(): Promise<void> {
    await this.cut();
    while (this.#inWork.length > 0) await this.#writeFirst();
  }

  /** Bytes of the blob that are no part of the tar. */
  async raw(bytes: Uint8Array): Promise<void> {
    this.#blob.update(bytes);
    this.sizeBytes += bytes.length;
    await this.#sink(bytes);
  }

  /** Once; the writer is of no use afterwards. */
  digests(): { readonly digest: Digest; readonly diffId: Digest } {
    return {
      digest: `sha256:${this.#blob.digest('hex')}` as Digest,
      diffId: `sha256:${this.#tar.digest('hex')}` as Digest,
    };
  }

  async #writeFirst(): Promise<void> {
    const member = this.#inWork.shift();
    if (member === undefined) return;
    const bytes = await member.compressed;
    this.#signal.throwIfAborted();
    for (const onPlaced of member.onPlaced) onPlaced(this.sizeBytes, this.sizeBytes + bytes.length);
    await this.raw(bytes);
  }
}
