import { createServer, request, type Server } from 'node:http';

/** A proxy in front of a registry that, while `lying`, changes a bit in each piece of a blob that passes. */
export class LyingRegistry implements AsyncDisposable {
  lying = false;
  /** Pieces of blobs that were changed. */
  lies = 0;
  readonly port: number;
  readonly #server: Server;

  private constructor(server: Server, port: number) {
    this.#server = server;
    this.port = port;
  }

  static async start(target: { readonly port: number }): Promise<LyingRegistry> {
    const server = createServer();
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(0, '127.0.0.1', resolve);
    });
    const address = server.address();
    if (address === null || typeof address === 'string') throw new Error('Cannot listen on 127.0.0.1');
    const registry = new LyingRegistry(server, address.port);
    server.on('request', (incoming, outgoing) => {
      const { method, url, headers } = incoming;
      const isBlob = method === 'GET' && url?.includes('/blobs/') === true;
      const forwarded = request({ host: '127.0.0.1', port: target.port, method, path: url, headers }, (answer) => {
        outgoing.writeHead(answer.statusCode ?? 502, answer.headers);
        answer.on('data', (piece: Buffer) => {
          if (registry.lying && isBlob && piece.length > 0) {
            const at = piece.length >> 1;
            piece[at] = (piece[at] ?? 0) ^ 1;
            registry.lies++;
          }
          if (!outgoing.write(piece)) {
            answer.pause();
            outgoing.once('drain', () => answer.resume());
          }
        });
        answer.once('end', () => outgoing.end());
        answer.once('error', () => outgoing.destroy());
      });
      forwarded.once('error', () => outgoing.destroy());
      outgoing.once('close', () => forwarded.destroy());
      incoming.pipe(forwarded);
    });
    return registry;
  }

  get host(): string {
    return `127.0.0.1:${this.port}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }
}
