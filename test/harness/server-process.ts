import { spawn, type ChildProcess } from 'node:child_process';
import { connect, createServer } from 'node:net';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { disposeOnInterrupt } from './interrupt.ts';

export interface ServerOptions {
  readonly name: string;
  readonly program: string;
  readonly args: readonly string[];
  readonly env?: NodeJS.ProcessEnv;
  readonly cwd?: string;
  /** Whether it serves now; asked again and again until it does. */
  readonly ready: (signal: AbortSignal) => Promise<boolean>;
  /** How it is told to end; after `stopTimeoutMs` it is killed. */
  readonly stopSignal?: NodeJS.Signals;
  readonly stopTimeoutMs?: number;
  readonly readyTimeoutMs?: number;
  /** Gets every line of its stderr. */
  readonly onLine?: (line: string) => void;
}

/** Kept of a server's log for error messages. */
const LOG_CHARS = 64 * 1024;
const POLL_MS = 20;

/** A server that runs as a child process: ready when `start` returns, gone when disposed or when this process dies. */
export class ServerProcess implements AsyncDisposable {
  readonly name: string;
  readonly pid: number;
  readonly exited: Promise<{ readonly code: number | null; readonly signal: string | null }>;
  readonly #child: ChildProcess;
  readonly #options: ServerOptions;
  readonly #forget: () => void;
  #log = '';
  #ended = false;

  private constructor(options: ServerOptions, child: ChildProcess, pid: number) {
    this.name = options.name;
    this.pid = pid;
    this.#child = child;
    this.#options = options;
    const keep = (text: string): void => {
      this.#log = (this.#log + text).slice(-LOG_CHARS);
    };
    child.stdout?.setEncoding('utf8').on('data', keep);
    child.stderr?.setEncoding('utf8').on('data', keep);
    const { onLine } = options;
    if (onLine !== undefined && child.stderr !== null) createInterface({ input: child.stderr }).on('line', onLine);
    this.exited = new Promise((resolve) =>
      child.once('exit', (code, signal) => {
        this.#ended = true;
        resolve({ code, signal });
      }),
    );
    this.#forget = disposeOnInterrupt(this);
  }

  static async start(options: ServerOptions, signal: AbortSignal): Promise<ServerProcess> {
    // The kernel ends it when this process dies, however it dies.
    const child = spawn('setpriv', ['--pdeathsig', 'TERM', '--', options.program, ...options.args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: options.env ?? process.env,
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    });
    if (child.pid === undefined) {
      const error = await new Promise<Error>((resolve) => child.once('error', resolve));
      throw new Error(`Cannot start ${options.name}: ${error.message}`, { cause: error });
    }
    const server = new ServerProcess(options, child, child.pid);
    try {
      await server.#untilReady(signal);
    } catch (error) {
      await server[Symbol.asyncDispose]();
      throw error;
    }
    return server;
  }

  get running(): boolean {
    return !this.#ended;
  }

  /** End of what it has written. */
  get log(): string {
    return this.#log;
  }

  kill(signal: NodeJS.Signals): void {
    if (!this.#ended) this.#child.kill(signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#ended) {
      this.kill(this.#options.stopSignal ?? 'SIGTERM');
      const timer = setTimeout(() => this.kill('SIGKILL'), this.#options.stopTimeoutMs ?? 10_000);
      await this.exited;
      clearTimeout(timer);
    }
    this.#child.stdout?.destroy();
    this.#child.stderr?.destroy();
    this.#forget();
  }

  async #untilReady(signal: AbortSignal): Promise<void> {
    const limit = this.#options.readyTimeoutMs ?? 60_000;
    const bounded = AbortSignal.any([signal, AbortSignal.timeout(limit)]);
    for (;;) {
      if (this.#ended) throw new Error(`Cannot start ${this.name}: it has ended\n${this.#log}`);
      if (bounded.aborted) throw new Error(`Cannot start ${this.name}: not ready after ${limit} ms\n${this.#log}`);
      if (await this.#options.ready(bounded).catch(() => false)) return;
      await sleep(POLL_MS);
    }
  }
}

/** A TCP port on 127.0.0.1 that nobody listened on a moment ago. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, '127.0.0.1', resolve);
  });
  const address = server.address();
  await new Promise<void>((resolve) => server.close(() => resolve()));
  if (address === null || typeof address === 'string') throw new Error('Cannot find a free port');
  return address.port;
}

/** Whether someone listens at a unix socket's path or a port of 127.0.0.1. */
export async function isListening(where: { readonly path: string } | { readonly port: number }): Promise<boolean> {
  return await new Promise<boolean>((resolve) => {
    const socket = connect('path' in where ? { path: where.path } : { port: where.port, host: '127.0.0.1' });
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}
