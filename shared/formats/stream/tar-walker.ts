import { type StreamWalker, WALK_BUFFER_BYTES, type WalkSink } from './stream-walker.ts';

/** An uncompressed blob can be cut anywhere: four buffers. */
const SPAN_BYTES = 4 * WALK_BUFFER_BYTES;

/** Walks a blob that is the tar itself. */
export class TarWalker implements StreamWalker {
  readonly #sink: WalkSink;
  #output: Buffer;
  #length = 0;
  #offset = 0;
  #spanStart = 0;

  constructor(sink: WalkSink) {
    this.#sink = sink;
    this.#output = sink.buffer();
  }

  push(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      const length = Math.min(bytes.length - at, WALK_BUFFER_BYTES - this.#length);
      this.#output.set(bytes.subarray(at, at + length), this.#length);
      this.#length += length;
      at += length;
      if (this.#length === WALK_BUFFER_BYTES) this.#flush();
      if (this.#offset - this.#spanStart === SPAN_BYTES) this.#cut();
    }
  }

  end(): void {
    this.#flush();
    if (this.#offset > this.#spanStart) this.#cut();
  }

  #flush(): void {
    if (this.#length === 0) return;
    this.#sink.data(this.#output, this.#length);
    this.#offset += this.#length;
    this.#output = this.#sink.buffer();
    this.#length = 0;
  }

  #cut(): void {
    const length = this.#offset - this.#spanStart;
    this.#sink.cut({
      streamOffset: this.#offset,
      segments: [{ blobOffset: this.#spanStart, blobLength: length, skip: 0, length }],
      checkpoint: undefined,
    });
    this.#spanStart = this.#offset;
  }

  [Symbol.dispose](): void {}
}
