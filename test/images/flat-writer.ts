/** A value of a FlatBuffer, in the order of the schema's fields; `undefined` in a table is a field that is left out. */
export type FlatValue =
  | { readonly int8: number }
  | { readonly int32: number }
  | { readonly uint32: number }
  | { readonly int64: number }
  | { readonly bytes: Uint8Array }
  | { readonly list: readonly FlatValue[] }
  | { readonly table: readonly (FlatValue | undefined)[] };

/**
 * Writes a FlatBuffer front to back (the libraries write back to front; readers must not care): each table with its vtable before it,
 * and after it what it refers to.
 */
export function writeFlatBuffer(root: FlatValue): Buffer {
  const writer = new FlatWriter();
  writer.reserve(4);
  writer.reference(0, root);
  return writer.bytes;
}

class FlatWriter {
  #buffer = Buffer.alloc(64 * 1024);
  #length = 0;

  get bytes(): Buffer {
    return Buffer.from(this.#buffer.subarray(0, this.#length));
  }

  reserve(bytes: number, alignment = 4): number {
    const at = Math.ceil(this.#length / alignment) * alignment;
    this.#length = at + bytes;
    if (this.#length > this.#buffer.length) {
      this.#buffer = Buffer.concat([this.#buffer, Buffer.alloc(Math.max(this.#length, this.#buffer.length))]);
    }
    return at;
  }

  /** Writes `value` and puts the offset to it at `place`. */
  reference(place: number, value: FlatValue): void {
    let at: number;
    if ('bytes' in value) {
      // Strings end in a NUL that their length leaves out.
      at = this.reserve(4 + value.bytes.length + 1);
      this.#buffer.writeUInt32LE(value.bytes.length, at);
      this.#buffer.set(value.bytes, at + 4);
      this.#buffer.writeUInt32LE(at - place, place);
      return;
    }
    if ('list' in value) {
      at = this.reserve(4 + 4 * value.list.length);
      this.#buffer.writeUInt32LE(value.list.length, at);
      this.#buffer.writeUInt32LE(at - place, place);
      value.list.forEach((element, i) => this.reference(at + 4 + 4 * i, element));
      return;
    }
    if (!('table' in value)) throw new TypeError('Cannot refer to a number');
    at = this.#table(value.table);
    this.#buffer.writeUInt32LE(at - place, place);
  }

  #table(fields: readonly (FlatValue | undefined)[]): number {
    const vtable = this.reserve(4 + 2 * fields.length);
    const table = this.reserve(4 + 8 * fields.length, 8);
    this.#buffer.writeUInt16LE(4 + 2 * fields.length, vtable);
    this.#buffer.writeUInt16LE(4 + 8 * fields.length, vtable + 2);
    this.#buffer.writeInt32LE(table - vtable, table);
    fields.forEach((field, i) => {
      if (field === undefined) return;
      const at = table + 4 + 8 * i;
      this.#buffer.writeUInt16LE(at - table, vtable + 4 + 2 * i);
      if ('int8' in field) this.#buffer.writeInt8(field.int8, at);
      else if ('int32' in field) this.#buffer.writeInt32LE(field.int32, at);
      else if ('uint32' in field) this.#buffer.writeUInt32LE(field.uint32, at);
      else if ('int64' in field) this.#buffer.writeBigInt64LE(BigInt(field.int64), at);
      else this.reference(at, field);
    });
    return table;
  }
}
