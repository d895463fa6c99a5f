import { randomUUID } from 'node:crypto';
import type { Digest } from '#shared/digest/digest.ts';
import type { ContainerdClient } from './containerd-client.ts';
import { ContainerdError, toContainerdError } from './containerd-error.ts';
import { ContentService, WriteAction, type WriteContentRequest, type WriteContentResponse } from './gen/content.ts';

/** Bytes of content in one message; containerd takes 16 MiB at most. */
const CHUNK_BYTES = 1024 * 1024;
/** Whole blobs are read into memory only up to this size: manifests and configurations. */
const MAX_READ_BYTES = 8 * 1024 * 1024;

export interface ContentDescriptor {
  readonly digest: Digest;
  readonly size: number;
}

/** containerd's content store, of one namespace. */
export class ContentStore {
  readonly #client: ContainerdClient;

  constructor(client: ContainerdClient) {
    this.#client = client;
  }

  async has(digest: Digest, signal: AbortSignal): Promise<boolean> {
    try {
      await this.#client.unary(ContentService.info, { digest }, signal);
      return true;
    } catch (error) {
      if (error instanceof ContainerdError && error.code === 'not-found') return false;
      throw error;
    }
  }

  /** A whole small blob. @throws ContainerdError `not-found`; `invalid` past 8 MiB. */
  async read(digest: Digest, signal: AbortSignal): Promise<Buffer> {
    const chunks: Uint8Array[] = [];
    let bytes = 0;
    for await (const message of this.#client.stream(ContentService.read, { digest, offset: 0, size: 0 }, signal)) {
      bytes += message.data.length;
      if (bytes > MAX_READ_BYTES) {
        throw new ContainerdError(
          'invalid',
          ContentService.read.path,
          `Cannot read ${digest} from the content store: larger than ${MAX_READ_BYTES} bytes, so no manifest or configuration`,
        );
      }
      chunks.push(message.data);
    }
    return Buffer.concat(chunks);
  }

  /**
   * Stores a blob unless it is there; its labels are set in both cases (the garbage collector follows
   * `containerd.io/gc.ref.*`). containerd checks size and digest.
   */
  async ingest(
    blob: ContentDescriptor,
    source: Uint8Array | AsyncIterable<Uint8Array>,
    labels: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ): Promise<void> {
    if (!(await this.has(blob.digest, signal))) {
      const ref = `kindling-${blob.digest}-${randomUUID()}`;
      try {
        await this.#write(ref, blob, source, labels, signal);
        return;
      } catch (error) {
        await this.#client
          .unary(ContentService.abort, { ref }, AbortSignal.timeout(5000))
          .catch(() => undefined /* there is nothing to abort after a refused first message */);
        if (!(error instanceof ContainerdError && error.code === 'already-exists')) throw error;
      }
    }
    const names = Object.keys(labels);
    if (names.length === 0) return;
    await this.#client.unary(
      ContentService.update,
      {
        info: { digest: blob.digest, size: 0, createdAt: undefined, updatedAt: undefined, labels: { ...labels } },
        updateMask: names.map((name) => `labels.${name}`),
      },
      signal,
    );
  }

  async #write(
    ref: string,
    blob: ContentDescriptor,
    source: Uint8Array | AsyncIterable<Uint8Array>,
    labels: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ): Promise<void> {
    const method = ContentService.write;
    signal.throwIfAborted();
    const call = this.#client.duplex<WriteContentRequest, WriteContentResponse>(method);
    // Answers are only counted in by their end: an error ends the call, and `finished` tells it.
    const finished = new Promise<void>((resolve, reject) => {
      call.on('data', () => undefined);
      call.once('error', (error) => reject(toContainerdError(error, method.path, this.#client.address)));
      call.once('end', resolve);
    });
    finished.catch(() => undefined);
    const onAbort = (): void => call.cancel();
    signal.addEventListener('abort', onAbort, { once: true });
    const message = (action: WriteAction, offset: number, data: Uint8Array): WriteContentRequest => ({
      action,
      ref,
      total: blob.size,
      expected: blob.digest,
      offset,
      data: Buffer.from(data.buffer, data.byteOffset, data.byteLength),
      labels: action === WriteAction.COMMIT ? { ...labels } : {},
    });
    try {
      let offset = 0;
      for await (const piece of source instanceof Uint8Array ? [source] : source) {
        for (let at = 0; at < piece.length; at += CHUNK_BYTES) {
          const data = piece.subarray(at, at + CHUNK_BYTES);
          const drained = call.write(message(WriteAction.WRITE, offset, data));
          offset += data.length;
          if (!drained) await Promise.race([once(call, 'drain'), finished]);
        }
      }
      call.write(message(WriteAction.COMMIT, offset, Buffer.alloc(0)));
      call.end();
      await finished;
    } catch (error) {
      call.cancel();
      throw error;
    } finally {
      signal.removeEventListener('abort', onAbort);
    }
  }
}

function once(emitter: NodeJS.EventEmitter, event: string): Promise<void> {
  return new Promise((resolve) => emitter.once(event, () => resolve()));
}
