import { LayerError } from './layer-index.ts';

/** A growing run of bytes: varints (seven bits a byte, lowest first) and raw bytes. */
export class VarintWriter {
  #bytes = Buffer.allocUnsafe(1024);
  #length = 0;

  get length(): number {
    return this.#length;
  }

  /** The bytes so far, not a copy. */
  get written(): Buffer {
    return this.#bytes.subarray(0, this.#length);
  }

  /** @throws LayerError `malformed` unless `value` is a whole number from 0 to 2^53 - 1. */
  whole(value: number): void {
    if (!(Number.isSafeInteger(value) && value >= 0)) {
      throw new LayerError('malformed', `Cannot encode the layer's index: ${value} is no whole number`);
    }
    this.#room(8);
    let rest = value;
    while (rest >= 0x80) {
      this.#bytes[this.#length++] = (rest % 0x80) | 0x80;
      rest = Math.floor(rest / 0x80);
    }
    this.#bytes[this.#length++] = rest;
  }

  /** A whole number of either sign, below 2^52: 0, -1, 1, -2, ... become 0, 1, 2, 3, ... */
  signed(value: number): void {
    this.whole(value >= 0 ? value * 2 : -value * 2 - 1);
  }

  bytes(bytes: Uint8Array): void {
    this.#room(bytes.length);
    this.#bytes.set(bytes, this.#length);
    this.#length += bytes.length;
  }

  #room(bytes: number): void {
    if (this.#length + bytes <= this.#bytes.length) return;
    const larger = Buffer.allocUnsafe(Math.max(this.#bytes.length * 2, this.#length + bytes));
    this.#bytes.copy(larger, 0, 0, this.#length);
    this.#bytes = larger;
  }
}
