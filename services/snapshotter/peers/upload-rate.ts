/** Bytes per second that may go to peers, with a burst of a quarter of a second; 0 = no limit. */
export class UploadRate {
  readonly #bytesPerMs: number;
  #freeMs = 0;

  constructor(bytesPerS: number) {
    this.#bytesPerMs = bytesPerS / 1000;
  }

  /** How long to wait before `bytes` more may go. They count as gone. */
  delayMs(bytes: number, nowMs: number): number {
    if (this.#bytesPerMs === 0) return 0;
    const start = Math.max(this.#freeMs, nowMs - 250);
    this.#freeMs = start + bytes / this.#bytesPerMs;
    return Math.max(0, start - nowMs);
  }
}
