import { closeSync, existsSync, fsyncSync, openSync, renameSync, rmSync, writeSync } from 'node:fs';

/**
 * Space on a disk that is kept by a file of zeros, for what must be written when the disk is full so that anything can be freed.
 * Synchronous, as the store that uses it.
 */
export class SpareSpace {
  readonly #path: string;
  readonly #bytes: number;

  constructor(path: string, bytes: number) {
    this.#path = path;
    this.#bytes = bytes;
    this.refill();
  }

  /** Gives the space up. */
  release(): void {
    rmSync(this.#path, { force: true });
  }

  /** Takes it (again), where the disk has it; else another time. */
  refill(): void {
    if (existsSync(this.#path)) return;
    const part = `${this.#path}.part`;
    try {
      const file = openSync(part, 'w', 0o600);
      try {
        const zeros = Buffer.alloc(this.#bytes);
        for (let at = 0; at < zeros.length; ) at += writeSync(file, zeros, at);
        // Some file systems say only here that there is no room.
        fsyncSync(file);
      } finally {
        closeSync(file);
      }
      renameSync(part, this.#path);
    } catch {
      rmSync(part, { force: true });
    }
  }
}
