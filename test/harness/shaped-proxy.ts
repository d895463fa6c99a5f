import { connect, createServer, type Server, type Socket } from 'node:net';
import { Transform, pipeline, type TransformCallback } from 'node:stream';

export interface Shape {
  /** Of the link in each direction, shared by all connections; undefined = not limited. */
  readonly bytesPerSecond?: number;
  /** Added to each direction, and to the opening of a connection (as a handshake over such a link takes). */
  readonly delayMs?: number;
}

/** Largest piece that is let through at once: pieces of several connections then take turns. */
const PIECE_BYTES = 16 * 1024;

/** A TCP proxy on 127.0.0.1 with a link's bandwidth and latency, which can be cut, closed and opened again. */
export class ShapedProxy implements AsyncDisposable {
  readonly port: number;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #down: Link;
  readonly #up: Link;
  #refusing = false;

  private constructor(server: Server, port: number, target: { host: string; port: number }, shape: Shape) {
    this.#server = server;
    this.port = port;
    this.#down = new Link(shape);
    this.#up = new Link(shape);
    server.on('connection', (client) => this.#accept(client, target));
  }

  static async start(target: { host: string; port: number }, shape: Shape = {}): Promise<ShapedProxy> {
    const server = createServer({ noDelay: true, allowHalfOpen: true });
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(0, '127.0.0.1', resolve);
    });
    const address = server.address();
    if (address === null || typeof address === 'string') throw new Error('Cannot listen on 127.0.0.1');
    return new ShapedProxy(server, address.port, target, shape);
  }

  get host(): string {
    return `127.0.0.1:${this.port}`;
  }

  /** Bytes that the target has sent so far. */
  get bytesDown(): number {
    return this.#down.bytes;
  }

  set shape(shape: Shape) {
    this.#down.shape = shape;
    this.#up.shape = shape;
  }

  /** Cuts every open connection; new ones work. */
  cut(): void {
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  /** Cuts every connection and resets new ones until `open`. */
  close(): void {
    this.#refusing = true;
    this.cut();
  }

  open(): void {
    this.#refusing = false;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  #accept(client: Socket, target: { host: string; port: number }): void {
    if (this.#refusing) {
      client.resetAndDestroy();
      return;
    }
    const upstream = connect({ ...target, noDelay: true, allowHalfOpen: true });
    for (const socket of [client, upstream]) {
      this.#sockets.add(socket);
      socket.once('close', () => this.#sockets.delete(socket));
    }
    const done = (): void => {
      // An error of one side has already destroyed both: that is all there is to tell.
    };
    pipeline(client, this.#up.stream(), upstream, done);
    pipeline(upstream, this.#down.stream(), client, done);
  }
}

/** One direction of the link: a clock that says when the next byte may leave. */
class Link {
  shape: Shape;
  bytes = 0;
  #freeAt = 0;

  constructor(shape: Shape) {
    this.shape = shape;
  }

  stream(): Transform {
    return new LinkStream(this);
  }

  /** When these bytes have left. */
  reserve(length: number): number {
    this.bytes += length;
    const now = performance.now();
    const { bytesPerSecond } = this.shape;
    if (bytesPerSecond === undefined) return now;
    this.#freeAt = Math.max(this.#freeAt, now) + (length / bytesPerSecond) * 1000;
    return this.#freeAt;
  }
}

/** Of one connection. What is due is done in the order in which it came, also where delays change meanwhile. */
class LinkStream extends Transform {
  readonly #link: Link;
  readonly #queue: { readonly due: number; readonly action: () => void }[] = [];
  #timer: NodeJS.Timeout | undefined;
  #opening = true;

  constructor(link: Link) {
    super({ highWaterMark: 64 * 1024 });
    this.#link = link;
  }

  override _transform(chunk: Buffer, _encoding: BufferEncoding, callback: TransformCallback): void {
    const { delayMs = 0 } = this.#link.shape;
    const delay = this.#opening ? 2 * delayMs : delayMs;
    this.#opening = false;
    let left = performance.now();
    for (let at = 0; at < chunk.length; at += PIECE_BYTES) {
      const piece = chunk.subarray(at, at + PIECE_BYTES);
      left = this.#link.reserve(piece.length);
      this.#later(left + delay, () => this.push(piece));
    }
    // Pieces are under way for the delay while the next ones are already taken in: latency costs no bandwidth.
    const wait = left - performance.now();
    if (wait < 1) callback();
    else setTimeout(callback, wait);
  }

  override _flush(callback: TransformCallback): void {
    this.#later(0, callback);
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    clearTimeout(this.#timer);
    callback(error);
  }

  #later(due: number, action: () => void): void {
    this.#queue.push({ due, action });
    if (this.#timer === undefined) this.#pump();
  }

  #pump(): void {
    this.#timer = undefined;
    for (let next = this.#queue[0]; next !== undefined; next = this.#queue[0]) {
      const wait = next.due - performance.now();
      if (wait > 0.3) {
        this.#timer = setTimeout(() => this.#pump(), wait);
        return;
      }
      this.#queue.shift();
      next.action();
    }
  }
}
