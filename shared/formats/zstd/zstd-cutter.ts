import { LayerError } from '#shared/layer/layer-index.ts';
import { DecodeError, SyncDecoder } from '../sync-decoder.ts';
import { ZstdFrames } from './zstd-frames.ts';

export interface CutSpan {
  /** Decoded, in a buffer of its own. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Bytes of the blob that were read since the span before it was complete. */
  readonly blobBytes: number;
}

/**
 * Decodes a zstd stream from the start of a frame on and cuts it into spans of known lengths, for spans that lie inside a frame. Never
 * more memory than one span and the frame's window.
 */
export class ZstdCutter implements Disposable {
  readonly #frames = new ZstdFrames();
  readonly #decoder = new SyncDecoder('zstd');
  readonly #lengths: readonly number[];
  #next = 0;
  #span: Buffer<ArrayBuffer> | undefined;
  #filled = 0;
  #counted = 0;

  /** `lengths`: decoded bytes of each span, in order, none of them 0. */
  constructor(lengths: readonly number[]) {
    this.#lengths = lengths;
  }

  /** All spans have come: what follows in the blob does not matter. */
  get done(): boolean {
    return this.#next === this.#lengths.length;
  }

  /** The next bytes; gives each span that they complete. @throws LayerError `malformed` */
  *push(bytes: Uint8Array): Generator<CutSpan> {
    try {
      for (const part of this.#frames.push(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength))) {
        yield* this.#decode(part.bytes, part.offset);
        if (this.done) return;
      }
    } catch (cause) {
      if (!(cause instanceof DecodeError)) throw cause;
      throw new LayerError('malformed', `Cannot decode the stream: ${cause.message}`, { cause });
    }
  }

  *#decode(input: Buffer, offset: number): Generator<CutSpan> {
    for (let at = 0; !this.done; ) {
      const length = this.#lengths[this.#next] ?? 0;
      this.#span ??= Buffer.allocUnsafeSlow(length);
      const span = this.#span;
      this.#decoder.write(input, at, input.length, span, this.#filled, length);
      const { consumed, produced } = this.#decoder;
      at += consumed;
      this.#filled += produced;
      if (this.#filled === length) {
        this.#next += 1;
        this.#span = undefined;
        this.#filled = 0;
        const blobBytes = offset + at - this.#counted;
        this.#counted = offset + at;
        yield { bytes: span, blobBytes };
      } else if (at === input.length) return;
      else if (consumed === 0 && produced === 0) throw new DecodeError('a frame ends before its last block');
    }
  }

  [Symbol.dispose](): void {
    this.#decoder[Symbol.dispose]();
  }
}
