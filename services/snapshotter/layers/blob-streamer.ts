import { MessageChannel, Worker } from 'node:worker_threads';
import type { Digest } from '#shared/digest/digest.ts';
import type { RegistryClient } from '#shared/registry/registry-client.ts';
import type { StreamBuilder } from './layer-builder.ts';
import type { StreamAnswer, StreamJob, StreamMessage } from './stream-job.ts';
import type { BuiltLayer } from './worker-job.ts';
import { WorkerError } from './worker-pool.ts';

/** Layers streamed at once: each takes two threads, and the bytes come over one link. */
const PARALLEL = 2;
/** Bytes of a message, and messages that the worker has not taken yet: bounds the memory of a stream. */
const MESSAGE_BYTES = 512 * 1024;
const MESSAGES_AHEAD = 6;

interface StreamSource {
  readonly repository: string;
  readonly layer: Digest;
  readonly sizeBytes: number;
}

/**
 * Makes a layer from one pass over its blob: what a layer without index or TOC needs once per node. The bytes are verified as
 * a whole, so every span of the layer is resident in the end.
 */
export class BlobStreamer implements StreamBuilder {
  readonly #registry: Pick<RegistryClient, 'blobStream'>;
  readonly #keepIndex: boolean;
  readonly #waiting: (() => void)[] = [];
  #running = 0;

  constructor(options: { readonly registry: Pick<RegistryClient, 'blobStream'>; readonly keepIndex?: boolean }) {
    this.#registry = options.registry;
    this.#keepIndex = options.keepIndex ?? false;
  }

  /** @throws WorkerError (`code` of the LayerError or file-system error), RegistryError */
  async build(source: StreamSource, folder: string, signal: AbortSignal): Promise<BuiltLayer> {
    if (this.#running >= PARALLEL) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    this.#running++;
    try {
      signal.throwIfAborted();
      return await this.#stream(source, folder, signal);
    } finally {
      this.#running--;
      this.#waiting.shift()?.();
    }
  }

  async #stream(source: StreamSource, folder: string, signal: AbortSignal): Promise<BuiltLayer> {
    const { layer, sizeBytes, repository } = source;
    const worker = new StreamWorker(layer, sizeBytes, folder, this.#keepIndex);
    try {
      const download = AbortSignal.any([signal, worker.failed]);
      let message = Buffer.allocUnsafeSlow(Math.min(MESSAGE_BYTES, Math.max(1, sizeBytes)));
      let filled = 0;
      let left = sizeBytes;
      for await (const chunk of this.#registry.blobStream(repository, { digest: layer, size: sizeBytes }, download)) {
        for (let at = 0; at < chunk.length; ) {
          const part = chunk.subarray(at, at + message.length - filled);
          message.set(part, filled);
          filled += part.length;
          at += part.length;
          if (filled < message.length) continue;
          left -= filled;
          await worker.push(message);
          message = Buffer.allocUnsafeSlow(Math.min(MESSAGE_BYTES, Math.max(1, left)));
          filled = 0;
        }
      }
      if (filled > 0) await worker.push(message.subarray(0, filled));
      return await worker.finish();
    } catch (error) {
      // The worker's reason, where it was the worker that ended the download.
      worker.failed.throwIfAborted();
      throw error;
    } finally {
      await worker.close();
    }
  }
}

/** The thread of one stream. */
class StreamWorker {
  readonly #failure = new AbortController();
  readonly #port;
  readonly #exited: Promise<void>;
  readonly #built = Promise.withResolvers<BuiltLayer>();
  #ahead = 0;
  #taken: (() => void) | undefined;

  constructor(layer: Digest, blobSize: number, folder: string, keepIndex: boolean) {
    const { port1, port2 } = new MessageChannel();
    this.#port = port1;
    const workerData: StreamJob = { layer, blobSize, folder, port: port2, keepIndex };
    const worker = new Worker(new URL('./stream-worker.ts', import.meta.url), {
      name: 'kindling-stream',
      workerData,
      transferList: [port2],
      resourceLimits: { maxOldGenerationSizeMb: 1024, maxYoungGenerationSizeMb: 16 },
    });
    this.#built.promise.catch(() => undefined);
    const fail = (error: WorkerError) => {
      this.#failure.abort(error);
      this.#built.reject(error);
      this.#taken?.();
    };
    port1.on('message', (answer: StreamAnswer) => {
      switch (answer.kind) {
        case 'taken':
          this.#ahead--;
          this.#taken?.();
          break;
        case 'built':
          this.#built.resolve(answer.layer);
          break;
        case 'failed':
          fail(new WorkerError(answer.code, answer.message));
          break;
      }
    });
    worker.on('error', (cause) =>
      fail(new WorkerError('crashed', `A stream worker ended: ${String(cause)}`, { cause })),
    );
    this.#exited = new Promise((resolve) => {
      worker.once('exit', () => {
        fail(new WorkerError('crashed', 'A stream worker ended early'));
        resolve();
      });
    });
  }

  /** Aborts with the reason why the layer cannot be made. */
  get failed(): AbortSignal {
    return this.#failure.signal;
  }

  /** Waits while too much is on its way. */
  async push(bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    while (this.#ahead >= MESSAGES_AHEAD && !this.failed.aborted) {
      await new Promise<void>((resolve) => (this.#taken = resolve));
    }
    this.failed.throwIfAborted();
    this.#ahead++;
    this.#port.postMessage({ kind: 'bytes', bytes } satisfies StreamMessage, [bytes.buffer]);
  }

  async finish(): Promise<BuiltLayer> {
    this.#port.postMessage({ kind: 'finish' } satisfies StreamMessage);
    return await this.#built.promise;
  }

  async close(): Promise<void> {
    this.#port.postMessage({ kind: 'end' } satisfies StreamMessage);
    await this.#exited;
    this.#port.close();
  }
}
