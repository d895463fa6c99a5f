/** Which spans of a layer a node holds. On disk it is the bare bitmap: bit `s & 7` of byte `s >> 3` is span `s`. */
export class Residency {
  readonly spanCount: number;
  readonly #bits: Uint8Array;
  #count = 0;

  constructor(spanCount: number, bits?: Uint8Array) {
    this.spanCount = spanCount;
    this.#bits = new Uint8Array(Math.ceil(spanCount / 8));
    if (bits === undefined) return;
    // A file that is too short lacks spans; bits behind the last span are somebody's mistake and mean nothing.
    this.#bits.set(bits.subarray(0, this.#bits.length));
    const tail = spanCount % 8;
    const last = this.#bits.length - 1;
    if (tail !== 0) this.#bits[last] = (this.#bits[last] ?? 0) & ((1 << tail) - 1);
    for (const byte of this.#bits) this.#count += POPULATION[byte] ?? 0;
  }

  get count(): number {
    return this.#count;
  }

  get complete(): boolean {
    return this.#count === this.spanCount;
  }

  has(span: number): boolean {
    return ((this.#bits[span >> 3] ?? 0) & (1 << (span & 7))) !== 0;
  }

  /** Whether every span of `first..last` is here. */
  hasAll(first: number, last: number): boolean {
    if (this.complete) return true;
    for (let span = first; span <= last; span++) if (!this.has(span)) return false;
    return true;
  }

  /** Whether the span is new. */
  add(span: number): boolean {
    if (span < 0 || span >= this.spanCount || this.has(span)) return false;
    this.#bits[span >> 3] = (this.#bits[span >> 3] ?? 0) | (1 << (span & 7));
    this.#count++;
    return true;
  }

  delete(span: number): boolean {
    if (!this.has(span)) return false;
    this.#bits[span >> 3] = (this.#bits[span >> 3] ?? 0) & ~(1 << (span & 7));
    this.#count--;
    return true;
  }

  /** First span at or after `from` that is not here, or -1. */
  nextMissing(from: number): number {
    for (let span = from; span < this.spanCount; span++) {
      if ((span & 7) === 0 && this.#bits[span >> 3] === 0xff) span += 7;
      else if (!this.has(span)) return span;
    }
    return -1;
  }

  /** A copy of the bitmap. */
  toBytes(): Uint8Array {
    return this.#bits.slice();
  }
}

const POPULATION = Uint8Array.from({ length: 256 }, (_, byte) => {
  let count = 0;
  for (let rest = byte; rest !== 0; rest &= rest - 1) count++;
  return count;
});
