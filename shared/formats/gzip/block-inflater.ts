import pakoInflate from 'pako/lib/zlib/inflate.js';
import PakoStream from 'pako/lib/zlib/zstream.js';
import { DecodeError, SyncDecoder } from '#shared/formats/sync-decoder.ts';

/** Inflates raw deflate on the calling thread, and can stop between blocks: what finding checkpoints takes. */
export interface BlockInflater extends Disposable {
  readonly consumed: number;
  readonly produced: number;
  write(
    input: Uint8Array,
    inputStart: number,
    inputEnd: number,
    output: Uint8Array,
    outputStart: number,
    outputEnd: number,
    untilBlock: boolean,
  ): void;
  reset(): void;
}

export type InflaterKind = 'native' | 'pako';

/** Native zlib through Node's binding is 1.5 times as fast as pako, which finds the same and is what it is checked against. */
export function openBlockInflater(kind?: InflaterKind): BlockInflater {
  if (kind === 'pako') return new PakoInflater();
  try {
    return new SyncDecoder('deflate-raw');
  } catch (error) {
    if (kind === 'native') throw error;
    return new PakoInflater();
  }
}

const RAW_WINDOW_BITS = -15;
const Z_NO_FLUSH = 0;
const Z_BLOCK = 5;
const Z_OK = 0;
const Z_STREAM_END = 1;
const Z_BUF_ERROR = -5;

class PakoInflater implements BlockInflater {
  #stream = PakoInflater.#open();
  #ended = false;
  consumed = 0;
  produced = 0;

  static #open(): PakoStream {
    const stream = new PakoStream();
    pakoInflate.inflateInit2(stream, RAW_WINDOW_BITS);
    return stream;
  }

  write(
    input: Uint8Array,
    inputStart: number,
    inputEnd: number,
    output: Uint8Array,
    outputStart: number,
    outputEnd: number,
    untilBlock: boolean,
  ): void {
    this.consumed = 0;
    this.produced = 0;
    if (this.#ended) return;
    const stream = this.#stream;
    stream.input = input;
    stream.next_in = inputStart;
    stream.avail_in = inputEnd - inputStart;
    stream.output = output;
    stream.next_out = outputStart;
    stream.avail_out = outputEnd - outputStart;
    const status = pakoInflate.inflate(stream, untilBlock ? Z_BLOCK : Z_NO_FLUSH);
    if (status !== Z_OK && status !== Z_STREAM_END && status !== Z_BUF_ERROR) {
      throw new DecodeError(`corrupt deflate data: ${stream.msg}`);
    }
    this.#ended = status === Z_STREAM_END;
    this.consumed = stream.next_in - inputStart;
    this.produced = stream.next_out - outputStart;
  }

  reset(): void {
    this.#ended = false;
    this.#stream = PakoInflater.#open();
  }

  [Symbol.dispose](): void {
    pakoInflate.inflateEnd(this.#stream);
  }
}
