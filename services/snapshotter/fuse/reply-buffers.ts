/**
 * Buffers for the bytes of replies, used again and again: a fresh one per read costs the kernel a page fault and a cleared
 * page for every 4 KiB, and stays in memory until the garbage collector comes by.
 */
export class ReplyBuffers {
  readonly #idle: readonly [small: Buffer<ArrayBuffer>[], large: Buffer<ArrayBuffer>[]] = [[], []];

  /** One with room for `bytes`, at most `REPLY_BUFFERS.large.bytes`; its contents are arbitrary. */
  take(bytes: number): Buffer<ArrayBuffer> {
    const small = bytes <= REPLY_BUFFERS.small.bytes;
    const size = small ? REPLY_BUFFERS.small.bytes : REPLY_BUFFERS.large.bytes;
    return this.#idle[small ? 0 : 1].pop() ?? Buffer.allocUnsafeSlow(size);
  }

  /** Gives back one that nothing reads or writes any more. */
  give(buffer: Buffer<ArrayBuffer>): void {
    const small = buffer.length <= REPLY_BUFFERS.small.bytes;
    const idle = this.#idle[small ? 0 : 1];
    if (idle.length < (small ? REPLY_BUFFERS.small : REPLY_BUFFERS.large).kept) idle.push(buffer);
  }
}

/** `small` is the kernel's default read-ahead, which nearly all reads are. `kept` bounds what idles: 6 MiB together. */
const REPLY_BUFFERS = {
  small: { bytes: 128 * 1024, kept: 16 },
  large: { bytes: 1024 * 1024, kept: 4 },
} as const;
