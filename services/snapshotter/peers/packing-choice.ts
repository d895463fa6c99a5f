export type PackingMode = 'auto' | 'always' | 'never';

/** What an older transfer still counts beside the next. */
const KEPT = 0.8;
/** Transfers of each kind until one is preferred. */
const FIRST_TRIES = 3;
/** From then on one in so many is of the other kind: what was slower may have become faster. */
const TRY_EVERY = 32;
/** Packed has to be so much slower: it leaves more of the links to others, and the next node hands on what it was sent packed as it is. */
const WORTH = 1.3;

interface Pace {
  bytes: number;
  ms: number;
  count: number;
}

/**
 * Whether contents are asked from peers packed. That takes fewer bytes and more processor time, so it is faster where links are what one
 * waits for, and slower where processors are: `auto` tries both and goes on with what brings contents sooner.
 */
export class PackingChoice {
  readonly #mode: PackingMode;
  readonly #packed: Pace = { bytes: 0, ms: 0, count: 0 };
  readonly #plain: Pace = { bytes: 0, ms: 0, count: 0 };
  #asked = 0;

  constructor(mode: PackingMode) {
    this.#mode = mode;
  }

  /** For the next transfer. */
  next(): boolean {
    if (this.#mode !== 'auto') return this.#mode === 'always';
    this.#asked++;
    if (this.#packed.count < FIRST_TRIES || this.#plain.count < FIRST_TRIES) return this.#asked % 2 === 1;
    return (this.#asked % TRY_EVERY === 0) !== this.#isPackedFaster();
  }

  /** A transfer that was asked for so: length of the contents, and milliseconds from the answer's begin to its end. */
  took(packed: boolean, bytes: number, ms: number): void {
    const pace = packed ? this.#packed : this.#plain;
    pace.bytes = pace.bytes * KEPT + bytes;
    pace.ms = pace.ms * KEPT + Math.max(1, ms);
    pace.count++;
  }

  #isPackedFaster(): boolean {
    return (this.#packed.bytes / this.#packed.ms) * WORTH > this.#plain.bytes / this.#plain.ms;
  }
}
