import { MessageChannel, Worker, type MessagePort } from 'node:worker_threads';
import { WorkerError } from './worker-pool.ts';

/** Messages that the thread has not taken yet, and their bytes at most: bounds the memory of what is on its way to it. */
const BYTES_AHEAD = 3 * 1024 * 1024;

/** To the thread: the blob's bytes in order, each answered by `taken`; then `finish`; `end` at any time. `more`: see `BlobReader`. */
export type BlobMessage =
  | { readonly kind: 'bytes'; readonly bytes: Uint8Array<ArrayBuffer> }
  | { readonly kind: 'more' | 'finish' | 'end' };

/** From the thread, beside the answers of what reads the blob there. */
export type BlobAnswer<T> =
  | { readonly kind: 'taken'; readonly byteLength: number }
  | { readonly kind: 'failed'; readonly code: string; readonly message: string }
  | { readonly kind: 'answer'; readonly answer: T };

/** A thread that one blob is read by, from its front. It ends with the blob. */
export class BlobThread<T> {
  readonly #failure = new AbortController();
  readonly #port: MessagePort;
  readonly #exited: Promise<void>;
  #bytesAhead = 0;
  #taken: (() => void) | undefined;

  /** `entry` serves with `serveBlob`, and gets `data` with a `port` as its `workerData`. */
  constructor(entry: URL, data: object, answered: (answer: T) => void) {
    const { port1, port2 } = new MessageChannel();
    this.#port = port1;
    const worker = new Worker(entry, {
      name: 'kindling-stream',
      workerData: { ...data, port: port2 },
      transferList: [port2],
      resourceLimits: { maxOldGenerationSizeMb: 1024, maxYoungGenerationSizeMb: 16 },
    });
    port1.on('message', (message: BlobAnswer<T>) => {
      switch (message.kind) {
        case 'taken':
          this.#bytesAhead -= message.byteLength;
          this.#taken?.();
          break;
        case 'failed':
          this.#fail(new WorkerError(message.code, message.message));
          break;
        case 'answer':
          answered(message.answer);
          break;
      }
    });
    worker.on('error', (cause) =>
      this.#fail(new WorkerError('crashed', `A stream worker ended: ${String(cause)}`, { cause })),
    );
    this.#exited = new Promise((resolve) => {
      worker.once('exit', () => {
        this.#fail(new WorkerError('crashed', 'A stream worker ended early'));
        resolve();
      });
    });
  }

  /** Aborts with the reason why the blob cannot be read on. */
  get failed(): AbortSignal {
    return this.#failure.signal;
  }

  /** Waits while too much is on its way. The bytes are gone for the caller. */
  async push(bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    while (this.#bytesAhead >= BYTES_AHEAD && !this.failed.aborted) {
      await new Promise<void>((resolve) => (this.#taken = resolve));
    }
    this.failed.throwIfAborted();
    this.#bytesAhead += bytes.byteLength;
    this.#port.postMessage({ kind: 'bytes', bytes } satisfies BlobMessage, [bytes.buffer]);
  }

  say(kind: 'more' | 'finish'): void {
    this.#port.postMessage({ kind } satisfies BlobMessage);
  }

  async close(): Promise<void> {
    this.#port.postMessage({ kind: 'end' } satisfies BlobMessage);
    await this.#exited;
    this.#port.close();
  }

  #fail(error: WorkerError): void {
    this.#failure.abort(error);
    this.#taken?.();
  }
}
