import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface SeenRequest {
  readonly method: string;
  readonly url: URL;
  readonly headers: IncomingMessage['headers'];
  readonly body: Buffer;
}

export type FakeHandler = (request: SeenRequest, response: ServerResponse) => void;

/** An HTTP server for tests of how the client behaves when a registry misbehaves; the real one is tested elsewhere. */
export class FakeRegistry implements AsyncDisposable {
  readonly requests: SeenRequest[] = [];
  readonly host: string;
  readonly #server;

  private constructor(server: ReturnType<typeof createServer>) {
    this.#server = server;
    this.host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  }

  static async start(handler: (registry: FakeRegistry) => FakeHandler): Promise<FakeRegistry> {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const registry = new FakeRegistry(server);
    const handle = handler(registry);
    server.on('request', (message, response) => {
      const parts: Buffer[] = [];
      message.on('data', (chunk: Buffer) => parts.push(chunk));
      message.on('end', () => {
        const request = {
          method: message.method ?? '',
          url: new URL(message.url ?? '/', `http://${registry.host}`),
          headers: message.headers,
          body: Buffer.concat(parts),
        };
        registry.requests.push(request);
        handle(request, response);
      });
    });
    return registry;
  }

  /** `METHOD /path` of all requests so far. */
  get lines(): string[] {
    return this.requests.map(({ method, url }) => `${method} ${url.pathname}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

/** Answers a request for `blob` as a registry does, its Range honoured. */
export function sendBlob(request: SeenRequest, response: ServerResponse, blob: Buffer): void {
  const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '');
  if (range === null) {
    response.writeHead(200, { 'content-length': blob.length }).end(blob);
    return;
  }
  const start = Number(range[1]);
  const end = Math.min(blob.length, range[2] ? Number(range[2]) + 1 : blob.length);
  if (start >= blob.length) {
    response.writeHead(416).end();
    return;
  }
  response
    .writeHead(206, { 'content-length': end - start, 'content-range': `bytes ${start}-${end - 1}/${blob.length}` })
    .end(blob.subarray(start, end));
}
