import { type Extent, LayerError } from '#shared/layer/layer-index.ts';
import { decimal, tarNumber } from './tar-number.ts';

/** Fragments of a sparse file that hold data: offset and length in the file, in the order of the archive. */
export interface SparseFragment {
  readonly offset: number;
  readonly length: number;
}

/** Fragments of one file: as many as a 4 GiB file with 4 KiB holes between 4 KiB runs has. */
const MAX_FRAGMENTS = 512 * 1024;

/** Numbers in text to fragments (GNU sparse 0.0 and 0.1). @throws LayerError `malformed` */
export function fragmentsOfNumbers(numbers: readonly string[]): SparseFragment[] {
  if (numbers.length % 2 !== 0 || numbers.length > 2 * MAX_FRAGMENTS) {
    throw new LayerError('malformed', `Cannot read a sparse file: its map has ${numbers.length} numbers`);
  }
  const fragments: SparseFragment[] = [];
  for (let i = 0; i < numbers.length; i += 2) {
    fragments.push({
      offset: decimal(numbers[i] ?? '', 'a sparse offset'),
      length: decimal(numbers[i + 1] ?? '', 'a sparse length'),
    });
  }
  return fragments;
}

/**
 * The fragments in an old GNU header (4 at 386) or in one of its extension blocks (21 at 0), up to the first empty one.
 * @throws LayerError `malformed`
 */
export function fragmentsOfBlock(block: Buffer, at: number, count: number, into: SparseFragment[]): void {
  for (let i = 0; i < count; i++) {
    const entry = at + i * 24;
    if (block[entry] === 0) return;
    if (into.length >= MAX_FRAGMENTS) throw tooMany();
    into.push({
      offset: tarNumber(block, { at: entry, bytes: 12 }, 'a sparse offset'),
      length: tarNumber(block, { at: entry + 12, bytes: 12 }, 'a sparse length'),
    });
  }
}

/** The map before the data of a GNU sparse 1.0 file: decimal lines (count, then offset and length of each), in blocks. */
export class SparseMapText {
  readonly #numbers: string[] = [];
  #partial = '';
  #wanted: number | undefined;

  /** Takes one block; true when the map is complete. @throws LayerError `malformed` */
  push(block: Buffer): boolean {
    const lines = (this.#partial + block.toString('latin1')).split('\n');
    this.#partial = lines.pop() ?? '';
    for (const line of lines) {
      if (this.#wanted === undefined) {
        const count = decimal(line, 'the number of sparse fragments');
        if (count > MAX_FRAGMENTS) throw tooMany();
        this.#wanted = count * 2;
      } else if (this.#numbers.length < this.#wanted) this.#numbers.push(line);
    }
    const done = this.#wanted !== undefined && this.#numbers.length >= this.#wanted;
    if (!done && this.#partial.length > 32) {
      throw new LayerError('malformed', 'Cannot read a sparse file: its map is not lines of numbers');
    }
    return done;
  }

  get fragments(): SparseFragment[] {
    return fragmentsOfNumbers(this.#numbers);
  }
}

/**
 * Extents of a file whose fragments' data lie one after the other from `streamOffset`.
 *
 * @throws LayerError `malformed` when they overlap, leave the file, or are not exactly `stored` bytes.
 */
export function sparseExtents(
  fragments: readonly SparseFragment[],
  size: number,
  stored: number,
  streamOffset: number,
): Extent[] {
  const extents: Extent[] = [];
  let fileEnd = 0;
  let taken = 0;
  for (const { offset, length } of fragments) {
    if (offset < fileEnd || length < 0 || offset + length > size) {
      throw new LayerError('malformed', `Cannot read a sparse file of ${size} bytes: fragment ${offset}+${length}`);
    }
    fileEnd = offset + length;
    if (length > 0) extents.push({ fileOffset: offset, streamOffset: streamOffset + taken, length });
    taken += length;
  }
  if (taken !== stored) {
    throw new LayerError('malformed', `Cannot read a sparse file: ${stored} bytes stored, ${taken} in its map`);
  }
  return extents;
}

function tooMany(): LayerError {
  return new LayerError('too-large', `Cannot read a sparse file: it has more than ${MAX_FRAGMENTS} fragments`);
}
