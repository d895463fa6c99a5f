import { LayerError } from './layer-index.ts';

/** Reads what a VarintWriter wrote. Every read past the end or of a number above 2^53 - 1 is a LayerError `malformed`. */
export class VarintReader {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  get left(): number {
    return this.#bytes.length - this.#at;
  }

  whole(): number {
    const bytes = this.#bytes;
    let byte = bytes[this.#at++];
    if (byte === undefined) throw cut();
    if (byte < 0x80) return byte;
    let value = byte & 0x7f;
    let scale = 0x80;
    do {
      byte = bytes[this.#at++];
      if (byte === undefined) throw cut();
      value += (byte & 0x7f) * scale;
      scale *= 0x80;
      if (value > Number.MAX_SAFE_INTEGER)
        throw new LayerError('malformed', 'Cannot read the index: a number past 2^53');
    } while (byte >= 0x80);
    return value;
  }

  signed(): number {
    const value = this.whole();
    return value % 2 === 0 ? value / 2 : -(value + 1) / 2;
  }

  /** A view, not a copy. */
  bytes(length: number): Buffer {
    if (length > this.left) throw cut();
    const start = this.#at;
    this.#at += length;
    return this.#bytes.subarray(start, this.#at);
  }

  /** A count of things that take at least a byte each. */
  count(what: string, max: number): number {
    const count = this.whole();
    if (count > max) throw new LayerError('too-large', `Cannot read the index: ${count} ${what}, ${max} at most`);
    return count;
  }
}

function cut(): LayerError {
  return new LayerError('malformed', 'Cannot read the index: it ends too soon');
}
