/** Some hundred paths. */
const BLOCK_BYTES = 16 * 1024;

/**
 * Copies of short runs of bytes that are kept for long, in blocks of their own. In Node's pool they would lie between what is
 * forgotten at once, and each of them would keep 64 KiB.
 */
export class KeptBytes {
  #block: Buffer = Buffer.alloc(0);

  keep(bytes: Uint8Array): Buffer {
    if (bytes.length > BLOCK_BYTES / 8) {
      const own = Buffer.allocUnsafeSlow(bytes.length);
      own.set(bytes);
      return own;
    }
    if (bytes.length > this.#block.length) this.#block = Buffer.allocUnsafeSlow(BLOCK_BYTES);
    const kept = this.#block.subarray(0, bytes.length);
    kept.set(bytes);
    this.#block = this.#block.subarray(bytes.length);
    return kept;
  }
}
