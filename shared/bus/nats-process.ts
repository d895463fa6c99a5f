import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** For tests: a real `nats-server` with JetStream on a free port of the loopback, its state in a temporary directory. */
export class NatsProcess implements AsyncDisposable {
  readonly url: string;
  readonly #port: number;
  readonly #directory: string;
  #child: ChildProcess | undefined;

  private constructor(port: number, directory: string) {
    this.#port = port;
    this.#directory = directory;
    this.url = `nats://127.0.0.1:${port}`;
  }

  /** Why there can be none here, or false. */
  static missing(): string | false {
    const found = spawnSync('nats-server', ['--version'], { stdio: 'ignore' });
    return found.error ? 'nats-server is not installed' : false;
  }

  static async start(): Promise<NatsProcess> {
    const nats = new NatsProcess(await freePort(), await mkdtemp(join(tmpdir(), 'kindling-nats-')));
    await nats.resume();
    return nats;
  }

  /** Starts it (again), with the state it had. */
  async resume(): Promise<void> {
    const args = ['-js', '-a', '127.0.0.1', '-p', String(this.#port), '-sd', this.#directory];
    const child = spawn('setpriv', ['--pdeathsig', 'TERM', '--', 'nats-server', ...args], {
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    this.#child = child;
    let log = '';
    await new Promise<void>((resolve, reject) => {
      child.once('error', reject);
      child.once('exit', () => reject(new Error(`nats-server ended: ${log}`)));
      child.stderr.setEncoding('utf8').on('data', (text: string) => {
        if (log.length < 20_000) log += text;
        if (log.includes('Server is ready')) resolve();
      });
    });
  }

  async kill(): Promise<void> {
    const child = this.#child;
    this.#child = undefined;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
    await rm(this.#directory, { recursive: true, force: true });
  }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  if (address === null || typeof address === 'string') throw new Error('No free port');
  return address.port;
}
