import { workerData, type MessagePort } from 'node:worker_threads';
import { ZstdCutter } from '#shared/formats/zstd/zstd-cutter.ts';
import { serveBlob, type BlobReader } from './serve-blob.ts';
import type { BlobAnswer } from './blob-thread.ts';

/** What a decode worker is started with. */
export interface DecodeJob {
  readonly port: MessagePort;
  /** Decoded bytes of each span of the stream, in order. */
  readonly lengths: readonly number[];
  /** Spans that it gives before it is asked for `more`: bounds the memory. */
  readonly ahead: number;
}

/** `ended`: the blob has; spans that have not come by then never come. */
export type DecodeAnswer =
  | { readonly kind: 'span'; readonly bytes: Uint8Array<ArrayBuffer>; readonly blobBytes: number }
  | { readonly kind: 'ended' };

/** Decodes a blob from a frame on and gives its spans one after the other, as fast as they are taken. */
class StreamDecoder implements BlobReader<DecodeAnswer> {
  readonly #port: MessagePort;
  readonly #cutter: ZstdCutter;
  #room: number;
  #wake: (() => void) | undefined;
  #closed = false;

  constructor({ port, lengths, ahead }: DecodeJob) {
    this.#port = port;
    this.#cutter = new ZstdCutter(lengths);
    this.#room = ahead;
  }

  async push(bytes: Uint8Array): Promise<void> {
    for (const { bytes: span, blobBytes } of this.#cutter.push(bytes)) {
      while (this.#room === 0 && !this.#closed) await new Promise<void>((resolve) => (this.#wake = resolve));
      if (this.#closed) return;
      this.#room--;
      const answer: BlobAnswer<DecodeAnswer> = { kind: 'answer', answer: { kind: 'span', bytes: span, blobBytes } };
      this.#port.postMessage(answer, [span.buffer]);
    }
  }

  more(): void {
    this.#room++;
    this.#wake?.();
  }

  async finish(): Promise<DecodeAnswer> {
    return { kind: 'ended' };
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#wake?.();
    this.#cutter[Symbol.dispose]();
  }
}

const job = workerData as DecodeJob;
await serveBlob(job.port, () => new StreamDecoder(job));
