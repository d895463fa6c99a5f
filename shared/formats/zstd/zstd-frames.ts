import { DecodeError } from '#shared/formats/sync-decoder.ts';

/** Bytes of a frame's header at most: magic 4, descriptor 1, window 1, dictionary 4, content size 8. */
const MAX_HEADER = 18;

type State =
  /** Collecting the bytes of a frame's header. */
  | { readonly kind: 'header' }
  /** Collecting the three bytes before a block. */
  | { readonly kind: 'block'; readonly checksum: boolean }
  /** `left` bytes belong to the frame whatever they are, then comes `next`. */
  | { readonly kind: 'body'; left: number; readonly next: State }
  | { readonly kind: 'end' };

/** A run of bytes of one frame; `isLast` = the frame ends with it. Skippable frames are left out. */
export interface FramePart {
  /** Of the first byte, from the start of all that was pushed. */
  readonly offset: number;
  readonly bytes: Buffer;
  readonly isLast: boolean;
}

/**
 * Finds where the frames of a zstd stream end (RFC 8878, section 3.1), without decoding: the decoder of Node stops
 * without a word after the first frame that it is given, so frames must be fed to it one by one.
 */
export class ZstdFrames {
  #state: State = { kind: 'header' };
  #pending: Buffer = Buffer.alloc(0);
  #isSkipped = false;
  #pushed = 0;

  /** @throws DecodeError where the bytes are no zstd stream. */
  *push(chunk: Buffer): Generator<FramePart> {
    const base = this.#pushed - this.#pending.length;
    this.#pushed += chunk.length;
    let rest = this.#pending.length === 0 ? chunk : Buffer.concat([this.#pending, chunk]);
    /** Start of what has been found to belong to the current frame but has not been handed on. */
    let from = 0;
    let at = 0;
    for (;;) {
      const step = this.#step(rest, at);
      if (step === undefined) break;
      at += step;
      if (this.#state.kind === 'end') {
        if (!this.#isSkipped) yield { offset: base + from, bytes: rest.subarray(from, at), isLast: true };
        from = at;
        this.#state = { kind: 'header' };
      }
    }
    if (at > from && !this.#isSkipped) yield { offset: base + from, bytes: rest.subarray(from, at), isLast: false };
    rest = rest.subarray(at);
    // A copy: what is left are a few bytes, the chunk may be large.
    this.#pending = Buffer.from(rest);
  }

  /** @throws DecodeError when the stream ends inside a frame. */
  end(): void {
    if (this.#state.kind !== 'header' || this.#pending.length > 0) {
      throw new DecodeError('it ends inside a frame');
    }
  }

  /** Goes one step from `at`; bytes consumed, undefined = more are needed first. */
  #step(bytes: Buffer, at: number): number | undefined {
    const state = this.#state;
    const have = bytes.length - at;
    switch (state.kind) {
      case 'header':
        return this.#header(bytes.subarray(at, at + MAX_HEADER));
      case 'block': {
        if (have < 3) return undefined;
        const header = bytes.readUIntLE(at, 3);
        const type = (header >> 1) & 3;
        if (type === 3) throw new DecodeError('a block of reserved type');
        const end: State = state.checksum ? { kind: 'body', left: 4, next: { kind: 'end' } } : { kind: 'end' };
        const next: State = (header & 1) === 1 ? end : { kind: 'block', checksum: state.checksum };
        // A block of one repeated byte has just that byte.
        const left = type === 1 ? 1 : header >> 3;
        this.#state = left === 0 ? next : { kind: 'body', left, next };
        return 3;
      }
      case 'body': {
        if (have === 0) return undefined;
        const taken = Math.min(have, state.left);
        state.left -= taken;
        if (state.left === 0) this.#state = state.next;
        return taken;
      }
      case 'end':
        return undefined;
    }
  }

  #header(bytes: Buffer): number | undefined {
    if (bytes.length < 5) return undefined;
    const magic = bytes.readUInt32LE(0);
    if (magic >= 0x184d2a50 && magic <= 0x184d2a5f) {
      if (bytes.length < 8) return undefined;
      this.#isSkipped = true;
      const left = bytes.readUInt32LE(4);
      this.#state = left === 0 ? { kind: 'end' } : { kind: 'body', left, next: { kind: 'end' } };
      return 8;
    }
    if (magic !== 0xfd2fb528) {
      throw new DecodeError('bytes that begin no frame');
    }
    const descriptor = bytes[4] ?? 0;
    const isSingle = (descriptor & 0x20) !== 0;
    const dictionary = [0, 1, 2, 4][descriptor & 3] ?? 0;
    const contentSize = [isSingle ? 1 : 0, 2, 4, 8][descriptor >> 6] ?? 0;
    const length = 5 + (isSingle ? 0 : 1) + dictionary + contentSize;
    if (bytes.length < length) return undefined;
    this.#isSkipped = false;
    this.#state = { kind: 'block', checksum: (descriptor & 4) !== 0 };
    return length;
  }
}
