/** Readers of a layer that are followed at once: a start interleaves a few files. */
const STREAMS = 4;
/** What the first, second, ... step of a sequential reader fetches ahead, in bytes of the blob. */
const FIRST_WINDOW = 512 * 1024;
const MAX_WINDOW = 4 * 1024 * 1024;

interface Stream {
  /** The span that continues the stream. */
  next: number;
  /** Reading this span means that half of what was fetched ahead is used. */
  mark: number;
  /** First span that has not been fetched ahead. */
  end: number;
  window: number;
}

/** Recognises readers that walk forward through a layer, and says how far ahead of them to fetch. */
export class ReadAhead {
  readonly #streams: Stream[] = [];

  /**
   * To be told of every read of `first..last`; `missed`: not all of it was there. Returns the spans to fetch ahead.
   * `lengthOf` says a span's bytes in the blob; undefined behind the last span.
   */
  note(
    first: number,
    last: number,
    missed: boolean,
    lengthOf: (span: number) => number | undefined,
  ): { readonly first: number; readonly count: number } | undefined {
    const at = this.#streams.findIndex(({ next }) => first >= next - 1 && first <= next + 1);
    const stream = this.#streams[at];
    if (stream === undefined) {
      if (!missed) return undefined;
      this.#streams.unshift({ next: last + 1, mark: last + 1, end: last + 1, window: 0 });
      if (this.#streams.length > STREAMS) this.#streams.pop();
      return undefined;
    }
    if (last < stream.next) return undefined;
    this.#streams.splice(at, 1);
    this.#streams.unshift(stream);
    stream.next = last + 1;
    if (!missed && last < stream.mark) return undefined;
    stream.window = stream.window === 0 ? FIRST_WINDOW : Math.min(MAX_WINDOW, stream.window * 2);
    const from = Math.max(last + 1, stream.end);
    let end = last + 1;
    for (let bytes = 0; bytes < stream.window; end++) {
      const length = lengthOf(end);
      if (length === undefined) break;
      bytes += length;
    }
    stream.end = Math.max(stream.end, end);
    stream.mark = last + 1 + ((end - last - 1) >> 1);
    return from < end ? { first: from, count: end - from } : undefined;
  }
}
