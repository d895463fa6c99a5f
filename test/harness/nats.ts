import { ServerProcess, freePort, isListening } from './server-process.ts';

/** The real `nats-server` with JetStream on a free port of 127.0.0.1; its streams live in `folder`. */
export class TestNats implements AsyncDisposable {
  readonly port: number;
  readonly #folder: string;
  #server: ServerProcess;

  private constructor(folder: string, port: number, server: ServerProcess) {
    this.#folder = folder;
    this.port = port;
    this.#server = server;
  }

  static async start(folder: string, signal: AbortSignal): Promise<TestNats> {
    const port = await freePort();
    return new TestNats(folder, port, await startNats(folder, port, signal));
  }

  get url(): string {
    return `nats://127.0.0.1:${this.port}`;
  }

  kill(): void {
    this.#server.kill('SIGKILL');
  }

  /** Ends the server, if it still runs, and starts it again on the same port with the same streams. */
  async restart(signal: AbortSignal): Promise<void> {
    await this.#server[Symbol.asyncDispose]();
    this.#server = await startNats(this.#folder, this.port, signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server[Symbol.asyncDispose]();
  }
}

async function startNats(folder: string, port: number, signal: AbortSignal): Promise<ServerProcess> {
  return await ServerProcess.start(
    {
      name: 'nats-server',
      program: 'nats-server',
      args: ['-a', '127.0.0.1', '-p', String(port), '-js', '-sd', folder],
      ready: async () => await isListening({ port }),
    },
    signal,
  );
}
