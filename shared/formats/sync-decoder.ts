import zlib from 'node:zlib';

/**
 * The compiled part of Node's zlib streams, as far as we use it. `minizlib` (npm itself) and others stand on the same calls.
 * What they give and the public `*Sync` functions do not: a bound on the output that is no error, output straight into a
 * buffer of ours, the number of bytes consumed, and a stop at block boundaries.
 */
interface ZlibBinding {
  onerror: (message: string, errno: number, code: string) => void;
  writeSync(
    flush: number,
    input: Uint8Array,
    inputOffset: number,
    inputLength: number,
    output: Uint8Array,
    outputOffset: number,
    outputLength: number,
  ): void;
  reset(): void;
  close(): void;
}

interface ZlibStream {
  readonly _handle: ZlibBinding | null;
  readonly _writeState: Uint32Array;
}

export class DecodeError extends Error {
  override readonly name = 'DecodeError';
  readonly code = 'corrupt';
}

export type Coding = 'deflate-raw' | 'gzip' | 'zstd';

/** Node makes an output buffer of this size with every stream; ours are passed to each call, so the smallest one. */
const UNUSED_CHUNK_BYTES = 64;

function open(coding: Coding): ZlibStream {
  const options = { chunkSize: UNUSED_CHUNK_BYTES };
  const stream =
    coding === 'gzip'
      ? zlib.createGunzip(options)
      : coding === 'zstd'
        ? zlib.createZstdDecompress(options)
        : zlib.createInflateRaw(options);
  return stream as unknown as ZlibStream;
}

/**
 * One decoder that runs on the calling thread, without events or copies.
 *
 * - `deflate-raw` stops at the end of the deflate stream and consumes nothing more.
 * - `gzip` goes on with the next member by itself.
 * - `zstd` stops at the end of a frame; the next call begins the next one.
 */
export class SyncDecoder implements Disposable {
  readonly #coding: Coding;
  #stream: ZlibStream;
  #binding: ZlibBinding;
  #failure = '';
  /** Bytes that the last `write` took from its input, and put into its output. */
  consumed = 0;
  produced = 0;

  constructor(coding: Coding) {
    this.#coding = coding;
    this.#stream = open(coding);
    this.#binding = this.#attach();
  }

  #attach(): ZlibBinding {
    const binding = this.#stream._handle;
    if (binding === null || typeof binding.writeSync !== 'function') {
      throw new Error(
        `Cannot decode ${this.#coding}: this Node (${process.version}) has other zlib internals than Node 24`,
      );
    }
    binding.onerror = (message) => {
      this.#failure = message;
    };
    return binding;
  }

  /**
   * Decodes until the input is used up, the output is full, the stream ends, or (with `untilBlock`, for deflate) a block does.
   * Sets `consumed` and `produced`.
   *
   * @throws DecodeError when the input is not valid; the decoder is of no further use until `reset`.
   */
  write(
    input: Uint8Array,
    inputStart: number,
    inputEnd: number,
    output: Uint8Array,
    outputStart: number,
    outputEnd: number,
    untilBlock = false,
  ): void {
    const flush = untilBlock ? zlib.constants.Z_BLOCK : zlib.constants.Z_NO_FLUSH;
    const inputLength = inputEnd - inputStart;
    const outputLength = outputEnd - outputStart;
    this.#binding.writeSync(flush, input, inputStart, inputLength, output, outputStart, outputLength);
    if (this.#failure !== '') {
      throw new DecodeError(`corrupt ${this.#coding === 'zstd' ? 'zstd' : 'deflate'} data: ${this.#failure}`);
    }
    const [outputLeft = 0, inputLeft = 0] = this.#stream._writeState;
    this.consumed = inputLength - inputLeft;
    this.produced = outputLength - outputLeft;
  }

  /** Ready for a new stream. */
  reset(): void {
    if (this.#failure === '') {
      this.#binding.reset();
      return;
    }
    // zstd's binding keeps its error over a reset.
    this.#binding.close();
    this.#failure = '';
    this.#stream = open(this.#coding);
    this.#binding = this.#attach();
  }

  [Symbol.dispose](): void {
    this.#binding.close();
  }
}
