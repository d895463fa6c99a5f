import { LayerError } from '#shared/layer/layer-index.ts';

/**
 * Reads a FlatBuffer that nobody vouches for (https://flatbuffers.dev/internals/). All numbers are little-endian.
 *
 * | what | layout |
 * |---|---|
 * | file | u32: offset of the root table from the file's start |
 * | table | i32: distance back to its vtable; then the fields |
 * | vtable | u16 its bytes, u16 the table's bytes, then a u16 for each field: offset from the table's start, 0 = absent |
 * | string, vector | the field holds a u32: offset from itself; there a u32 count, then the elements |
 *
 * The npm library of that name reads past the end as `undefined`; here every read is bounded. Offsets may point anywhere, so that a few bytes
 * could be made to stand for endless lists: all that is read of strings and lists together is at most the file's length, as
 * it is where nothing overlaps.
 *
 * Its methods throw RangeError where a read leaves the file, LayerError `malformed` where parts overlap.
 */
export class FlatBuffer {
  readonly bytes: Buffer;
  #left: number;

  constructor(bytes: Uint8Array) {
    this.bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
    this.#left = bytes.length;
  }

  root(): FlatTable {
    return new FlatTable(this, this.bytes.readUInt32LE(0));
  }

  /** Accounts for `length` bytes from `at` on. @returns their end */
  claim(at: number, length: number): number {
    this.#left -= length;
    if (this.#left < 0) throw new LayerError('malformed', 'its parts overlap');
    const end = at + length;
    if (end > this.bytes.length) throw new RangeError(`${length} bytes at ${at} of ${this.bytes.length}`);
    return end;
  }
}

/** One table; fields are named by their place in the schema, from 0. */
export class FlatTable {
  readonly #file: FlatBuffer;
  readonly #at: number;
  readonly #vtable: number;
  readonly #fields: number;

  constructor(file: FlatBuffer, at: number) {
    this.#file = file;
    this.#at = at;
    this.#vtable = at - file.bytes.readInt32LE(at);
    this.#fields = Math.floor(file.bytes.readUInt16LE(this.#vtable) / 2) - 2;
  }

  /** Where the field is in the file; undefined where the table lacks it. */
  #place(field: number): number | undefined {
    if (field >= this.#fields) return undefined;
    const offset = this.#file.bytes.readUInt16LE(this.#vtable + 4 + 2 * field);
    return offset === 0 ? undefined : this.#at + offset;
  }

  int8(field: number, absent: number): number {
    const place = this.#place(field);
    return place === undefined ? absent : this.#file.bytes.readInt8(place);
  }

  int32(field: number): number {
    const place = this.#place(field);
    return place === undefined ? 0 : this.#file.bytes.readInt32LE(place);
  }

  uint32(field: number): number {
    const place = this.#place(field);
    return place === undefined ? 0 : this.#file.bytes.readUInt32LE(place);
  }

  /** @throws LayerError where it is no number that JavaScript can hold. */
  int64(field: number): number {
    const place = this.#place(field);
    if (place === undefined) return 0;
    const value = Number(this.#file.bytes.readBigInt64LE(place));
    if (!Number.isSafeInteger(value)) throw new LayerError('malformed', `it has the number ${value}`);
    return value;
  }

  /** A string or a vector of bytes; shares the file's memory. Empty where absent. */
  bytes(field: number): Buffer {
    const place = this.#place(field);
    return place === undefined ? NO_BYTES : this.#bytesAt(place);
  }

  table(field: number): FlatTable | undefined {
    const place = this.#place(field);
    return place === undefined ? undefined : new FlatTable(this.#file, this.#target(place));
  }

  *tables(field: number): Generator<FlatTable> {
    for (const place of this.#elements(field)) yield new FlatTable(this.#file, this.#target(place));
  }

  *strings(field: number): Generator<Buffer> {
    for (const place of this.#elements(field)) yield this.#bytesAt(place);
  }

  /** Elements of a vector. */
  count(field: number): number {
    const place = this.#place(field);
    return place === undefined ? 0 : this.#file.bytes.readUInt32LE(this.#target(place));
  }

  *#elements(field: number): Generator<number> {
    const place = this.#place(field);
    if (place === undefined) return;
    const vector = this.#target(place);
    const end = this.#file.claim(vector + 4, 4 * this.#file.bytes.readUInt32LE(vector));
    for (let at = vector + 4; at < end; at += 4) yield at;
  }

  #bytesAt(place: number): Buffer {
    const vector = this.#target(place);
    const end = this.#file.claim(vector + 4, this.#file.bytes.readUInt32LE(vector));
    return this.#file.bytes.subarray(vector + 4, end);
  }

  #target(place: number): number {
    return place + this.#file.bytes.readUInt32LE(place);
  }
}

const NO_BYTES = Buffer.alloc(0);
