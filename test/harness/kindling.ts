import { mkdir, readFile, readdir } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { takesEvents } from '#services/cli/embedded-services.ts';
import { AGENT_FLAGS, keeperCommand } from '#services/snapshotter/keeper/keeper-arguments.ts';
import { ControlClient } from '#shared/control/control-client.ts';
import type { PullEvent } from '#shared/control/control-protocol.ts';
import { disposeOnInterrupt } from './interrupt.ts';
import { monotonicMs } from './monotonic-clock.ts';
import { ServerProcess, isListening } from './server-process.ts';
import { unmountBelow } from './temp-folder.ts';

export interface KindlingOptions {
  /** Of its own, short: data, sockets and mounts live here. */
  readonly folder: string;
  /** containerd's socket, which need not listen yet. */
  readonly containerd: string;
  /** Settings of the agent: `KINDLING_…`. */
  readonly env?: Readonly<Record<string, string>>;
}

export interface ProcessMemory {
  readonly residentBytes: number;
  readonly peakBytes: number;
  /** Pages shared with other processes counted by their share: node's own code is in every node process. */
  readonly proportionalBytes: number;
}

/** What the keeper says of its agents, in the order in which it said so. */
export interface KeeperEvent {
  readonly message: string;
  readonly agent: number | undefined;
  /** When it was read here. */
  readonly atMs: number;
}

export type PulledLayer = Extract<PullEvent, { kind: 'layer' }>;
export interface Pulled {
  readonly chainId: string;
  readonly layers: readonly PulledLayer[];
}

const AGENT = new URL('../../services/snapshotter/main.ts', import.meta.url).pathname;
const EMBEDDED = new URL('../../services/cli/embedded.ts', import.meta.url).pathname;

/** A node of Kindling: the keeper and its agent, everything else embedded. */
export class TestKindling implements AsyncDisposable {
  readonly folder: string;
  readonly socket: string;
  readonly controlSocket: string;
  readonly dataDir: string;
  readonly client: ControlClient;
  readonly #options: KindlingOptions;
  readonly #forget: () => void;
  readonly #events: KeeperEvent[];
  #keeper: ServerProcess;

  private constructor(options: KindlingOptions, keeper: ServerProcess, events: KeeperEvent[]) {
    this.#options = options;
    this.folder = options.folder;
    ({ socket: this.socket, control: this.controlSocket } = kindlingPaths(options.folder));
    this.dataDir = dataDirOf(options);
    this.client = new ControlClient(this.controlSocket);
    this.#keeper = keeper;
    this.#events = events;
    this.#forget = disposeOnInterrupt(this);
  }

  static async start(options: KindlingOptions, signal: AbortSignal): Promise<TestKindling> {
    const events: KeeperEvent[] = [];
    return new TestKindling(options, await startKeeper(options, events, signal), events);
  }

  get keeperPid(): number {
    return this.#keeper.pid;
  }

  get log(): string {
    return this.#keeper.log;
  }

  get keeperEvents(): readonly KeeperEvent[] {
    return this.#events;
  }

  /** The agent that serves now; undefined between two. */
  async agentPid(): Promise<number | undefined> {
    return (await this.agentPids())[0];
  }

  /** All that live, the oldest first: while one takes over from another there are two. */
  async agentPids(): Promise<readonly number[]> {
    const text = await readFile(`/proc/${this.keeperPid}/task/${this.keeperPid}/children`, 'utf8').catch(() => '');
    const agents: number[] = [];
    for (const pid of text.split(' ').filter((part) => part !== '')) {
      const environment = await readFile(`/proc/${pid}/environ`, 'latin1').catch(() => '');
      if (environment.includes('KINDLING_FUSE_FD=')) agents.push(Number(pid));
    }
    return agents;
  }

  /** Whether the keeper has said so. */
  hasServed(pid: number): boolean {
    return this.#events.some(({ message, agent }) => agent === pid && message === 'The agent serves');
  }

  /** Kills the agent with -9 and returns its pid; the keeper starts the next one. */
  async killAgent(): Promise<number | undefined> {
    const pid = await this.agentPid();
    if (pid !== undefined) process.kill(pid, 'SIGKILL');
    return pid;
  }

  /** Waits until an agent other than `old` serves. */
  async untilServing(old: number | undefined, signal: AbortSignal): Promise<void> {
    for (;;) {
      signal.throwIfAborted();
      const pid = await this.agentPid();
      // Not by its socket: that of one that was killed within a call on its own mounts takes connections until the call is answered.
      if (pid !== undefined && pid !== old && this.hasServed(pid)) return;
      await sleep(20);
    }
  }

  /** Pulls an image lazily through the agent, as `kindling pull` does. @throws Error when it fails */
  async pull(reference: string, signal: AbortSignal): Promise<Pulled> {
    const layers: PulledLayer[] = [];
    for await (const event of this.client.pull({ reference, namespace: 'test' }, signal)) {
      if (event.kind === 'layer') layers.push(event);
      if (event.kind === 'failed') throw new Error(`Cannot pull ${reference}: ${event.message}\n${this.log}`);
      if (event.kind === 'done') return { chainId: event.chainId, layers };
    }
    throw new Error(`Cannot pull ${reference}: the agent's answer ended early\n${this.log}`);
  }

  /** Bytes that layers have taken from registry and peers so far. */
  async bytesFetched(signal: AbortSignal): Promise<number> {
    const layers = await this.client.layers(signal);
    return layers.reduce((sum, { bytesBySource }) => sum + bytesBySource.registry + bytesBySource.peer, 0);
  }

  /** Waits until every layer is complete, that is, no container depends on us any more. */
  async untilComplete(signal: AbortSignal): Promise<void> {
    for (;;) {
      const layers = await this.client.layers(signal);
      if (layers.every((layer) => layer.complete && layer.mounted !== 'fuse')) return;
      await sleep(50, undefined, { signal });
    }
  }

  async memory(): Promise<{ readonly keeper: ProcessMemory; readonly agent: ProcessMemory }> {
    const agent = await this.agentPid();
    if (agent === undefined) throw new Error('There is no agent to measure');
    return { keeper: await memoryOf(this.keeperPid), agent: await memoryOf(agent) };
  }

  /** Ends keeper and agent as an operator would; nothing may be mounted by containers any more. */
  async stop(): Promise<void> {
    // The first signal comes from the dispose; the second is for what still depends on the session: a test that failed half-way.
    const timer = setTimeout(() => this.#keeper.kill('SIGTERM'), 5_000);
    await this.#keeper[Symbol.asyncDispose]();
    clearTimeout(timer);
  }

  /** Kills keeper and agent with -9, as a power cut ends them. */
  async killAll(): Promise<void> {
    const agent = await this.agentPid();
    this.#keeper.kill('SIGKILL');
    if (agent !== undefined) {
      try {
        process.kill(agent, 'SIGKILL');
      } catch {
        // It ended with its keeper.
      }
    }
    await this.#keeper.exited;
  }

  /** After `stop` or `killAll`. */
  async startAgain(signal: AbortSignal, env: Readonly<Record<string, string>> = {}): Promise<void> {
    const options = { ...this.#options, env: { ...this.#options.env, ...env } };
    this.#keeper = await startKeeper(options, this.#events, signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#forget();
    if (this.#keeper.running) await this.stop();
    await killLeftAgents(`${this.dataDir}/fuse`);
    await unmountBelow(this.folder);
  }
}

export function kindlingPaths(folder: string): { readonly socket: string; readonly control: string } {
  return { socket: `${folder}/s.sock`, control: `${folder}/ctl.sock` };
}

function dataDirOf({ folder, env }: KindlingOptions): string {
  return env?.['KINDLING_DATA_DIR'] ?? `${folder}/data`;
}

async function startKeeper(
  options: KindlingOptions,
  events: KeeperEvent[],
  signal: AbortSignal,
): Promise<ServerProcess> {
  const { socket, control } = kindlingPaths(options.folder);
  const data = dataDirOf(options);
  await mkdir(options.folder, { recursive: true });
  await mkdir(data, { recursive: true });
  const env: NodeJS.ProcessEnv = {};
  for (const [name, value] of Object.entries(process.env)) if (!name.startsWith('KINDLING_')) env[name] = value;
  return await ServerProcess.start(
    {
      name: 'kindling',
      program: process.execPath,
      args: keeperCommand({
        mount: `${data}/fuse`,
        data,
        socket,
        agent: [...AGENT_FLAGS, takesEvents(options.env ?? {}) ? EMBEDDED : AGENT],
      }),
      env: {
        // As the command `kindling` does: compiled modules are kept between starts.
        NODE_COMPILE_CACHE: new URL('../../node_modules/.cache/compile', import.meta.url).pathname,
        ...env,
        KINDLING_DATA_DIR: data,
        KINDLING_SOCKET: socket,
        KINDLING_CONTROL_SOCKET: control,
        KINDLING_CONTAINERD: options.containerd,
        KINDLING_NAMESPACE: 'test',
        ...options.env,
      },
      // The keeper holds the snapshots socket: only the agent's own tells that it serves.
      ready: async () => await isListening({ path: control }),
      stopTimeoutMs: 25_000,
      onLine: (line) => {
        const event = keeperEvent(line);
        if (event !== undefined) events.push(event);
      },
    },
    signal,
  );
}

/** Undefined for a line that is not the keeper's. */
function keeperEvent(line: string): KeeperEvent | undefined {
  if (!line.includes('"service":"keeper"')) return undefined;
  try {
    const { msg, agent } = JSON.parse(line) as { msg?: unknown; agent?: unknown };
    return { message: String(msg), agent: typeof agent === 'number' ? agent : undefined, atMs: monotonicMs() };
  } catch {
    return undefined;
  }
}

async function memoryOf(pid: number): Promise<ProcessMemory> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  const kibibytes = (name: string): number => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(status)?.[1] ?? 0);
  const rollup = await readFile(`/proc/${pid}/smaps_rollup`, 'utf8');
  return {
    residentBytes: kibibytes('VmRSS') * 1024,
    peakBytes: kibibytes('VmHWM') * 1024,
    proportionalBytes: Number(/^Pss:\s+(\d+) kB/m.exec(rollup)?.[1] ?? 0) * 1024,
  };
}

async function killLeftAgents(fuseFolder: string): Promise<void> {
  for (const entry of await readdir('/proc')) {
    const environment = await readFile(`/proc/${entry}/environ`, 'latin1').catch(() => '');
    if (!environment.includes(`KINDLING_KEEPER=${fuseFolder}`)) continue;
    try {
      process.kill(Number(entry), 'SIGKILL');
    } catch {
      // It has just ended.
    }
  }
}
