import type { Digest } from '#shared/digest/digest.ts';
import type { RegistryClient } from '#shared/registry/registry-client.ts';
import type { StreamBuilder } from './layer-builder.ts';
import { inMessages } from './blob-messages.ts';
import { BlobThread } from './blob-thread.ts';
import type { StreamJob } from './stream-job.ts';
import type { BuiltLayer } from './worker-job.ts';

const ENTRY = new URL('./stream-worker.ts', import.meta.url);
/** Layers streamed at once: each takes two threads, and the bytes come over one link. */
const PARALLEL = 2;
/** Bytes given to the thread at once. */
const MESSAGE_BYTES = 512 * 1024;

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
    const built = Promise.withResolvers<BuiltLayer>();
    const data: Omit<StreamJob, 'port'> = { layer, blobSize: sizeBytes, folder, keepIndex: this.#keepIndex };
    const thread = new BlobThread<BuiltLayer>(ENTRY, data, built.resolve);
    built.promise.catch(() => undefined);
    thread.failed.addEventListener('abort', () => built.reject(thread.failed.reason), { once: true });
    try {
      const download = AbortSignal.any([signal, thread.failed]);
      const blob = this.#registry.blobStream(repository, { digest: layer, size: sizeBytes }, download);
      for await (const message of inMessages(blob, MESSAGE_BYTES)) await thread.push(message);
      thread.say('finish');
      return await built.promise;
    } catch (error) {
      // The thread's reason, where it was the thread that ended the download.
      thread.failed.throwIfAborted();
      throw error;
    } finally {
      await thread.close();
    }
  }
}
