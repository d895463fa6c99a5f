/** Spans of a layer as a bitmap: bit `s & 7` of byte `s >> 3` is span `s`. The same form on disk, on the wire and in Redis. */
export class SpanSet {
  readonly #bits: Uint8Array;

  constructor(spanCount: number, bits?: Uint8Array) {
    this.#bits = new Uint8Array(Math.ceil(spanCount / 8));
    if (bits !== undefined) this.#bits.set(bits.subarray(0, this.#bits.length));
  }

  static of(spanCount: number, spans: Iterable<number>): SpanSet {
    const set = new SpanSet(spanCount);
    for (const span of spans) set.add(span);
    return set;
  }

  static fromText(spanCount: number, base64: string): SpanSet {
    return new SpanSet(spanCount, Buffer.from(base64, 'base64'));
  }

  has(span: number): boolean {
    return ((this.#bits[span >> 3] ?? 0) & (1 << (span & 7))) !== 0;
  }

  add(span: number): void {
    const byte = this.#bits[span >> 3];
    if (byte !== undefined) this.#bits[span >> 3] = byte | (1 << (span & 7));
  }

  delete(span: number): void {
    const byte = this.#bits[span >> 3];
    if (byte !== undefined) this.#bits[span >> 3] = byte & ~(1 << (span & 7));
  }

  /** Ascending. */
  *spans(): Generator<number> {
    for (const [at, byte] of this.#bits.entries()) {
      if (byte === 0) continue;
      for (let bit = 0; bit < 8; bit++) if ((byte & (1 << bit)) !== 0) yield at * 8 + bit;
    }
  }

  get bytes(): Uint8Array {
    return this.#bits;
  }

  get text(): string {
    return Buffer.from(this.#bits).toString('base64');
  }
}
