import { Client, Metadata, credentials, type ClientDuplexStream } from '@grpc/grpc-js';
import { ContainerdError, toContainerdError } from './containerd-error.ts';
import { VersionService } from './gen/version.ts';

/** What a method of the generated services looks like to us. */
export interface Method<Request, Response> {
  readonly path: string;
  readonly requestSerialize: (value: Request) => Buffer;
  readonly responseDeserialize: (bytes: Buffer) => Response;
}

/** Larger than any list of images or snapshots of a node; containerd's own limit is 16 MiB a message. */
const MAX_MESSAGE_BYTES = 64 * 1024 * 1024;

export interface ContainerdClientOptions {
  /** Path of the unix socket. */
  readonly address: string;
  /** containerd's namespace; `default` for ctr, `k8s.io` for CRI. */
  readonly namespace: string;
}

/**
 * One channel to a unix socket that speaks containerd's API: containerd itself, its CRI plugin, or a proxy plugin such
 * as our own. Every method rejects with ContainerdError. Nothing is retried here: only callers know what is safe.
 */
export class ContainerdClient {
  readonly address: string;
  readonly namespace: string;
  readonly #client: Client;
  readonly #lease: string | undefined;

  constructor(options: ContainerdClientOptions, shared?: { readonly client: Client; readonly lease: string }) {
    this.address = options.address;
    this.namespace = options.namespace;
    this.#lease = shared?.lease;
    this.#client =
      shared?.client ??
      new Client(`unix://${options.address}`, credentials.createInsecure(), {
        'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
        'grpc.max_send_message_length': MAX_MESSAGE_BYTES,
        // A containerd that has just been restarted is found again within a second.
        'grpc.initial_reconnect_backoff_ms': 100,
        'grpc.max_reconnect_backoff_ms': 1000,
        // Clients of different tests and namespaces must not share a channel that one of them closes.
        'grpc.use_local_subchannel_pool': 1,
      });
  }

  /** The same channel; what its calls create belongs to the lease. Closing either closes both. */
  underLease(lease: string): ContainerdClient {
    return new ContainerdClient(this, { client: this.#client, lease });
  }

  async unary<Request, Response>(
    method: Method<Request, Response>,
    request: Request,
    signal: AbortSignal,
  ): Promise<Response> {
    signal.throwIfAborted();
    return await new Promise<Response>((resolve, reject) => {
      const call = this.#client.makeUnaryRequest(
        method.path,
        method.requestSerialize,
        method.responseDeserialize,
        request,
        this.#metadata(),
        {},
        (error, response) => {
          signal.removeEventListener('abort', onAbort);
          if (error !== null) reject(toContainerdError(error, method.path, this.address));
          else if (response === undefined) reject(noAnswer(method.path, this.address));
          else resolve(response);
        },
      );
      const onAbort = (): void => call.cancel();
      signal.addEventListener('abort', onAbort, { once: true });
    });
  }

  /** Messages of a server stream. Leaving the loop early cancels the call. */
  async *stream<Request, Response>(
    method: Method<Request, Response>,
    request: Request,
    signal: AbortSignal,
  ): AsyncGenerator<Response, void, undefined> {
    signal.throwIfAborted();
    const call = this.#client.makeServerStreamRequest(
      method.path,
      method.requestSerialize,
      method.responseDeserialize,
      request,
      this.#metadata(),
      {},
    );
    const onAbort = (): void => call.cancel();
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      for await (const message of call) yield message as Response;
    } catch (error) {
      throw toContainerdError(error, method.path, this.address);
    } finally {
      signal.removeEventListener('abort', onAbort);
      call.cancel();
    }
  }

  /** A stream in both directions; the caller handles `error` and ends it. */
  duplex<Request, Response>(method: Method<Request, Response>): ClientDuplexStream<Request, Response> {
    return this.#client.makeBidiStreamRequest(
      method.path,
      method.requestSerialize,
      method.responseDeserialize,
      this.#metadata(),
      {},
    );
  }

  /** Resolves when the socket answers; rejects with the last error when the signal aborts. */
  async ready(signal: AbortSignal): Promise<string> {
    let last: unknown = new ContainerdError('unavailable', VersionService.version.path, `${this.address} is not there`);
    while (!signal.aborted) {
      try {
        return (await this.unary(VersionService.version, {}, signal)).version;
      } catch (error) {
        last = error;
        if (error instanceof ContainerdError && error.retryable) await pause(50, signal);
        else throw error;
      }
    }
    throw last;
  }

  close(): void {
    this.#client.close();
  }

  #metadata(): Metadata {
    const metadata = new Metadata();
    metadata.set('containerd-namespace', this.namespace);
    if (this.#lease !== undefined) metadata.set('containerd-lease', this.#lease);
    return metadata;
  }
}

function noAnswer(method: string, address: string): ContainerdError {
  return new ContainerdError('internal', method, `Cannot call ${method} on ${address}: an answer without a message`);
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener('abort', done, { once: true });
  });
}
