import { ServerProcess, freePort, isListening } from './server-process.ts';

/** The real `redis-server` on a free port of 127.0.0.1, in memory only. */
export class TestRedis implements AsyncDisposable {
  readonly port: number;
  #server: ServerProcess;

  private constructor(port: number, server: ServerProcess) {
    this.port = port;
    this.#server = server;
  }

  static async start(signal: AbortSignal): Promise<TestRedis> {
    const port = await freePort();
    return new TestRedis(port, await startRedis(port, signal));
  }

  get url(): string {
    return `redis://127.0.0.1:${this.port}`;
  }

  kill(): void {
    this.#server.kill('SIGKILL');
  }

  /** Starts it again, empty, on the same port. */
  async restart(signal: AbortSignal): Promise<void> {
    await this.#server[Symbol.asyncDispose]();
    this.#server = await startRedis(this.port, signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server[Symbol.asyncDispose]();
  }
}

async function startRedis(port: number, signal: AbortSignal): Promise<ServerProcess> {
  return await ServerProcess.start(
    {
      name: 'redis-server',
      program: 'redis-server',
      args: ['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no'],
      ready: async () => await isListening({ port }),
    },
    signal,
  );
}
