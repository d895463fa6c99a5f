import { setTimeout as sleep } from 'node:timers/promises';
import { runTool } from '#test/images/tool.ts';
import { ServerProcess, freePort, isListening } from './server-process.ts';
import { TempFolder } from './temp-folder.ts';

const SLOTS = 16_384;
const POLL_MS = 20;

interface Master {
  readonly port: number;
  readonly busPort: number;
  server: ServerProcess;
}

/** A real Redis Cluster of three masters without replicas, on free ports of 127.0.0.1, in memory only. */
export class TestRedisCluster implements AsyncDisposable {
  readonly #masters: readonly Master[];
  readonly #folder: string;
  readonly #closing: AsyncDisposableStack;

  private constructor(masters: readonly Master[], folder: string, closing: AsyncDisposableStack) {
    this.#masters = masters;
    this.#folder = folder;
    this.#closing = closing;
  }

  static async start(signal: AbortSignal): Promise<TestRedisCluster> {
    await using closing = new AsyncDisposableStack();
    const folder = closing.use(await TempFolder.create('rc'));
    const masters: Master[] = [];
    closing.defer(async () => {
      await Promise.all(masters.map(async ({ server }) => await server[Symbol.asyncDispose]()));
    });
    for (let i = 0; i < 3; i++) {
      const [port, busPort] = [await freePort(), await freePort()];
      masters.push({ port, busPort, server: await startMaster(port, busPort, folder.path, signal) });
    }
    const [first] = masters;
    for (const [i, { port }] of masters.entries()) {
      const slots = [Math.floor((i * SLOTS) / 3), Math.floor(((i + 1) * SLOTS) / 3) - 1];
      await ask(port, ['cluster', 'addslotsrange', ...slots.map(String)], signal);
      await ask(port, ['cluster', 'set-config-epoch', String(i + 1)], signal);
      if (first === undefined || i === 0) continue;
      await ask(port, ['cluster', 'meet', '127.0.0.1', String(first.port), String(first.busPort)], signal);
    }
    const cluster = new TestRedisCluster(masters, folder.path, closing.move());
    await cluster.#whole(signal);
    return cluster;
  }

  /** As `REDIS_URL`. */
  get url(): string {
    return this.#masters.map(({ port }) => `redis://127.0.0.1:${port}`).join(',');
  }

  /** One of the masters loses all that it holds, as when it starts again without persistence; it keeps its slots. */
  async empty(index: number, signal: AbortSignal): Promise<void> {
    const master = this.#masters[index];
    if (master === undefined) throw new Error(`There is no master ${index}`);
    master.server.kill('SIGKILL');
    await master.server[Symbol.asyncDispose]();
    master.server = await startMaster(master.port, master.busPort, this.#folder, signal);
    await this.#whole(signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#closing.disposeAsync();
  }

  async #whole(signal: AbortSignal): Promise<void> {
    for (const { port } of this.#masters) {
      const isWhole = async () =>
        /cluster_state:ok[^]*cluster_known_nodes:3/.test(await ask(port, ['cluster', 'info'], signal));
      while (!(await isWhole())) await sleep(POLL_MS, undefined, { signal });
    }
  }
}

async function ask(port: number, command: readonly string[], signal: AbortSignal): Promise<string> {
  const answer = await runTool('redis-cli', ['-p', String(port), ...command], signal);
  if (answer.startsWith('ERR')) throw new Error(`Redis on port ${port} refuses ${command.join(' ')}: ${answer}`);
  return answer;
}

async function startMaster(port: number, busPort: number, folder: string, signal: AbortSignal): Promise<ServerProcess> {
  const cluster = ['--cluster-enabled', 'yes', '--cluster-port', String(busPort)];
  // What it knows of the others is in this file, which it finds again.
  const files = ['--dir', folder, '--cluster-config-file', `nodes-${port}.conf`, '--save', '', '--appendonly', 'no'];
  return await ServerProcess.start(
    {
      name: 'redis-server',
      program: 'redis-server',
      args: ['--port', String(port), '--bind', '127.0.0.1', ...cluster, ...files],
      ready: async () => await isListening({ port }),
    },
    signal,
  );
}
