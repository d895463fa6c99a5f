import { createHash, type Hash } from 'node:crypto';
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Digest } from '#shared/digest/digest.ts';
import { type LayerIndex, LayerError } from '#shared/layer/layer-index.ts';
import type { TarSink } from '#shared/tar/tar-reader.ts';
import { AnyWalker, type StreamFormat } from './any-walker.ts';
import { type PayloadSink, StreamDigester } from './stream-digester.ts';
import { type StreamCut, WALK_BUFFER_BYTES } from './stream-walker.ts';
import { type WalkReceiver, WalkThread } from './walk-thread.ts';

export interface StreamIndexerOptions {
  readonly layer: Digest;
  readonly blobSize: number;
  /** Digest of the uncompressed tar as the image's config has it; checked where given. */
  readonly diffId?: Digest | undefined;
  /** Takes the payload as it passes, in stream order, e.g. to keep it in a file until the layer image can be laid out. */
  readonly payload?: PayloadSink | undefined;
  /** Sees the tar as it passes. */
  readonly witness?: Required<TarSink> | undefined;
  /** `one`: everything on the calling thread; `two` (default): decompression on a thread of its own. Small blobs take one. */
  readonly threads?: 'one' | 'two';
}

/** A thread takes some 60 ms to start; so long, one thread indexes some MiB. */
const ONE_THREAD_BYTES = 4 * 1024 * 1024;
/** Bytes of a blob that are walked in one go: of a bomb they decode to 32 MiB. */
const SLICE_BYTES = 1024;
/** Whatever a small blob decodes to, timers of the thread that walks it are kept waiting no longer than this and a slice. */
const TURN_MS = 20;

/**
 * Makes the index of a blob from one pass over it, as it downloads: decompresses it, reads the tar, digests the blob, the tar and each span,
 * and finds where it can be taken up later. Equal blobs give equal indexes whoever builds them and however they arrive. Memory: a few
 * MiB, and 5 to 15 KiB for each 4 MiB of the stream.
 *
 * `push` all of the blob, then `finish`. Disposing stops its thread, at any time.
 */
export class StreamIndexer implements AsyncDisposable {
  readonly #options: StreamIndexerOptions;
  readonly #blob: Hash = createHash('sha256');
  readonly #digester: StreamDigester;
  readonly #walk: Walk;
  #blobBytes = 0;

  constructor(options: StreamIndexerOptions) {
    this.#options = options;
    const digester = new StreamDigester(options.payload, options.witness);
    this.#digester = digester;
    const sink = {
      data: (bytes: Buffer) => digester.data(bytes),
      cut: (cut: StreamCut) => digester.cut(cut),
      amend: (blobOffset: number, blobLength: number) => digester.amend(blobOffset, blobLength),
    };
    const threads = options.blobSize <= ONE_THREAD_BYTES ? 'one' : (options.threads ?? 'two');
    this.#walk = threads === 'one' ? new WalkHere(sink, options.blobSize) : new WalkThread(sink, options.blobSize);
  }

  /**
   * The blob's next bytes; they may be used again once it has resolved.
   *
   * @throws LayerError when the blob is longer than it should be, corrupt, a bomb, or holds no proper tar.
   */
  async push(bytes: Uint8Array): Promise<void> {
    this.#blobBytes += bytes.length;
    if (this.#blobBytes > this.#options.blobSize) throw this.#wrongSize(`more than ${this.#options.blobSize}`);
    this.#blob.update(bytes);
    try {
      await this.#walk.push(bytes);
    } catch (error) {
      throw this.#refusal(error);
    }
  }

  /** @throws LayerError `digest-mismatch` when the blob, or its tar, is not the one that was asked for. */
  async finish(): Promise<LayerIndex> {
    const { layer, blobSize, diffId } = this.#options;
    if (this.#blobBytes !== blobSize) throw this.#wrongSize(`${this.#blobBytes}, not ${blobSize}`);
    const digest = `sha256:${this.#blob.digest('hex')}`;
    if (digest !== layer)
      throw new LayerError('digest-mismatch', `Refused layer ${layer}: its blob has the digest ${digest}`);
    try {
      const format = await this.#walk.end();
      const { entries, spans, diffId: found } = this.#digester.end();
      if (diffId !== undefined && diffId !== found) {
        throw new LayerError('digest-mismatch', `its tar has the digest ${found}, its image says ${diffId}`);
      }
      return { layer, blobSize, diffId: found, format, entries, spans, prioritySpans: 0 };
    } catch (error) {
      throw this.#refusal(error);
    }
  }

  #wrongSize(sizes: string): LayerError {
    return new LayerError('malformed', `Refused layer ${this.#options.layer}: its blob has ${sizes} bytes`);
  }

  #refusal(error: unknown): unknown {
    if (!(error instanceof LayerError)) return error;
    return new LayerError(error.code, `Refused layer ${this.#options.layer}: ${error.message}`, { cause: error });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#walk.close();
  }
}

/** Where the blob is decompressed. */
interface Walk {
  push(bytes: Uint8Array): Promise<void>;
  end(): Promise<StreamFormat>;
  close(): Promise<void>;
}

class WalkHere implements Walk {
  readonly #walker: AnyWalker;
  #turnMs = performance.now();

  constructor(sink: WalkReceiver, blobSize: number) {
    const buffer = Buffer.allocUnsafe(WALK_BUFFER_BYTES);
    const walkSink = {
      ...sink,
      buffer: () => buffer,
      data: (bytes: Buffer, length: number) => sink.data(bytes.subarray(0, length)),
    };
    this.#walker = new AnyWalker(walkSink, blobSize);
  }

  async push(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; at += SLICE_BYTES) {
      this.#walker.push(bytes.subarray(at, at + SLICE_BYTES));
      if (performance.now() - this.#turnMs < TURN_MS) continue;
      await nextTurn();
      this.#turnMs = performance.now();
    }
  }

  async end(): Promise<StreamFormat> {
    this.#walker.end();
    return this.#walker.format ?? 'tar';
  }

  async close(): Promise<void> {
    this.#walker[Symbol.dispose]();
  }
}
