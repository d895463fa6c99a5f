/** Range [start, end) of the layer image. */
export type ImageRange = readonly [start: number, end: number];

/** A reader that may go on before the spans it reads of are here whole. */
export interface EarlyRead {
  readonly range: ImageRange;
  /** Spans of it whose part is not readable yet. */
  readonly left: Set<number>;
  /** Resolves when the range is readable. */
  readonly ready: Promise<void>;
  readonly settle: () => void;
}

/** Readers by the spans they wait for. */
export class EarlyReads {
  readonly #reads = new Map<number, Set<EarlyRead>>();

  /** `end` must be called with it. `spans`: those that are missing; not empty. */
  begin(range: ImageRange, spans: Iterable<number>): EarlyRead {
    const { promise: ready, resolve: settle } = Promise.withResolvers<void>();
    const read: EarlyRead = { range, left: new Set(spans), ready, settle };
    for (const span of read.left) {
      const others = this.#reads.get(span);
      if (others === undefined) this.#reads.set(span, new Set([read]));
      else others.add(read);
    }
    return read;
  }

  of(span: number): readonly EarlyRead[] {
    return Array.from(this.#reads.get(span) ?? []);
  }

  /** Their parts of the span are readable. */
  came(span: number, reads: readonly EarlyRead[]): void {
    for (const read of reads) {
      this.#remove(span, read);
      read.left.delete(span);
      if (read.left.size === 0) read.settle();
    }
  }

  end(read: EarlyRead): void {
    for (const span of read.left) this.#remove(span, read);
  }

  #remove(span: number, read: EarlyRead): void {
    const reads = this.#reads.get(span);
    if (reads?.delete(read) === true && reads.size === 0) this.#reads.delete(span);
  }
}
