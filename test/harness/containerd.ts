import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdir, readFile, readdir, writeFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { runTool } from '#test/images/tool.ts';
import { disposeOnInterrupt } from './interrupt.ts';
import { ServerProcess, isListening } from './server-process.ts';
import { unmountBelow } from './temp-folder.ts';

export interface ContainerdOptions {
  /** Of its own: root, state, socket and configuration live here. Short, because sockets live in it. */
  readonly folder: string;
  /** Socket of the proxy snapshotter `kindling`. */
  readonly snapshotterSocket?: string;
  /** More proxy snapshotters by name, such as `stargz`. */
  readonly snapshotters?: Readonly<Record<string, string>>;
  /** TOML of the CRI plugin's table, for tests that need CRI; without it the plugin is off. */
  readonly cri?: string;
}

export interface RunOptions {
  readonly snapshotter: string;
  /** Instead of the image's own command. */
  readonly command?: readonly string[];
  readonly hostNetwork?: boolean;
  /** More arguments of `ctr run`, before the image. */
  readonly args?: readonly string[];
  readonly id?: string;
}

export interface RunResult {
  readonly code: number | null;
  readonly output: string;
  readonly ms: number;
}

/** Namespace of all that tests make in containerd. */
const NAMESPACE = 'test';
const CTR_TIMEOUT_MS = 180_000;
const RETRY_MS = 50;
const MAX_COLLECTIONS = 5;
/** `ctr-remote` compresses with one thread at the highest level. */
const CONVERT_TIMEOUT_MS = 900_000;

/** A containerd of one's own, beside any other on the machine. */
export class TestContainerd implements AsyncDisposable {
  readonly folder: string;
  readonly address: string;
  readonly #options: ContainerdOptions;
  readonly #forget: () => void;
  #server: ServerProcess;
  #views = 0;

  private constructor(options: ContainerdOptions, server: ServerProcess) {
    this.#options = options;
    this.folder = options.folder;
    this.address = `${options.folder}/c.sock`;
    this.#server = server;
    this.#forget = disposeOnInterrupt(this);
  }

  static async start(options: ContainerdOptions, signal: AbortSignal): Promise<TestContainerd> {
    await mkdir(options.folder, { recursive: true });
    return new TestContainerd(options, await startContainerd(options, signal));
  }

  get log(): string {
    return this.#server.log;
  }

  get pid(): number {
    return this.#server.pid;
  }

  async restart(signal: AbortSignal): Promise<void> {
    await this.#server[Symbol.asyncDispose]();
    this.#server = await startContainerd(this.#options, signal);
  }

  /** Runs `ctr` and returns its stdout. @throws Error with its stderr */
  async ctr(args: readonly string[], signal: AbortSignal): Promise<string> {
    return await this.#tool('ctr', args, CTR_TIMEOUT_MS, signal);
  }

  /** `ctr-remote` of the stargz snapshotter. */
  async ctrRemote(args: readonly string[], signal: AbortSignal): Promise<string> {
    return await this.#tool('ctr-remote', args, CONVERT_TIMEOUT_MS, signal);
  }

  async #tool(program: string, args: readonly string[], timeoutMs: number, signal: AbortSignal): Promise<string> {
    return await runTool(
      program,
      ['--address', this.address, '--namespace', NAMESPACE, ...args],
      AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]),
    );
  }

  /** Pulls and unpacks an image the ordinary way. */
  async pull(reference: string, snapshotter: string, signal: AbortSignal): Promise<void> {
    await this.ctr(['images', 'pull', '--plain-http', '--snapshotter', snapshotter, reference], signal);
  }

  /** Runs a container to its end and removes it. Does not throw when the container fails: look at `code`. */
  async run(reference: string, options: RunOptions, signal: AbortSignal): Promise<RunResult> {
    const started = performance.now();
    const { child } = this.#spawnRun(reference, options, signal);
    let output = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
    child.stderr.setEncoding('utf8').on('data', (text: string) => (output += text));
    const code = await new Promise<number | null>((resolve, reject) => {
      child.once('error', reject);
      child.once('close', resolve);
    });
    return { code, output, ms: performance.now() - started };
  }

  /** Starts a container that runs until `stop`; its output is watched for `line`. */
  async start(reference: string, options: RunOptions, signal: AbortSignal): Promise<RunningContainer> {
    const { child, id } = this.#spawnRun(reference, options, signal);
    return new RunningContainer(this, child, id);
  }

  #spawnRun(reference: string, options: RunOptions, signal: AbortSignal) {
    // Unlike any other's: runc keeps the containers of all containerds of a machine in one folder.
    const id = options.id ?? `c-${randomBytes(6).toString('hex')}`;
    const args = ['--address', this.address, '--namespace', NAMESPACE, 'run', '--rm'];
    args.push('--snapshotter', options.snapshotter);
    if (options.hostNetwork === true) args.push('--net-host');
    args.push(...(options.args ?? []), reference, id, ...(options.command ?? []));
    const child = spawn('ctr', args, { stdio: ['ignore', 'pipe', 'pipe'], signal });
    return { child, id };
  }

  /** Makes a view of an image's top snapshot and mounts it at `target`. The work is done in child processes. */
  async mountImage(
    chainId: string,
    snapshotter: string,
    target: string,
    signal: AbortSignal,
  ): Promise<AsyncDisposable> {
    const snapshots = ['snapshots', '--snapshotter', snapshotter];
    await mkdir(target, { recursive: true });
    const bounded = AbortSignal.any([signal, AbortSignal.timeout(CTR_TIMEOUT_MS)]);
    let key: string;
    for (let collections = 0; ; ) {
      // Another one for each attempt: of one that was not answered the snapshotter may know.
      key = `view-${++this.#views}-${process.pid}`;
      try {
        await this.ctr([...snapshots, 'view', key, chainId], bounded);
        // `ctr` gives a view no root for the garbage collector, which may be quicker than this label.
        await this.ctr([...snapshots, 'label', key, 'containerd.io/gc.root=test'], bounded);
        const command = await this.ctr([...snapshots, 'mounts', target, key], bounded);
        await runTool('sh', ['-euc', command], bounded);
        break;
      } catch (error) {
        const message = error instanceof Error ? error.message : '';
        const collected = message.includes(key) && message.includes('not found');
        // The snapshotter was just replaced: whoever calls containerd asks again.
        if (!message.includes(': unavailable') && (!collected || ++collections === MAX_COLLECTIONS)) throw error;
        await sleep(RETRY_MS, undefined, { signal: bounded });
      }
    }
    return {
      [Symbol.asyncDispose]: async () => {
        await unmountBelow(target);
        await this.ctr([...snapshots, 'remove', key], AbortSignal.timeout(CTR_TIMEOUT_MS));
      },
    };
  }

  async removeImage(reference: string, signal: AbortSignal): Promise<void> {
    await this.ctr(['images', 'remove', '--sync', reference], signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#forget();
    const signal = AbortSignal.timeout(30_000);
    if (this.#server.running) {
      const tasks = await this.ctr(['tasks', 'list', '--quiet'], signal).catch(() => '');
      for (const id of tasks.split('\n').filter((line) => line !== '')) {
        await this.ctr(['tasks', 'delete', '--force', id], signal).catch(() => '');
      }
    }
    await this.#server[Symbol.asyncDispose]();
    await this.#killShims();
    await unmountBelow(this.folder);
  }

  /** A shim whose task did not go (containerd was killed, a read hangs) outlives containerd by design. */
  async #killShims(): Promise<void> {
    for (const entry of await readdir('/proc')) {
      const command = await readFile(`/proc/${entry}/cmdline`, 'utf8').catch(() => '');
      if (!command.includes('containerd-shim') || !command.includes(this.address)) continue;
      try {
        process.kill(Number(entry), 'SIGKILL');
      } catch {
        // It has just ended.
      }
    }
  }
}

/** A container started by `ctr run`, which stays in front of it. */
export class RunningContainer implements AsyncDisposable {
  readonly id: string;
  readonly ended: Promise<number | null>;
  readonly #containerd: TestContainerd;
  #output = '';
  #isEnded = false;

  constructor(containerd: TestContainerd, child: ReturnType<typeof spawn>, id: string) {
    this.id = id;
    this.#containerd = containerd;
    child.stdout?.setEncoding('utf8').on('data', (text: string) => (this.#output += text));
    child.stderr?.setEncoding('utf8').on('data', (text: string) => (this.#output += text));
    this.ended = new Promise((resolve) => {
      child.once('error', (error) => {
        this.#output += String(error);
      });
      child.once('close', (code) => {
        this.#isEnded = true;
        resolve(code);
      });
    });
  }

  get output(): string {
    return this.#output;
  }

  get running(): boolean {
    return !this.#isEnded;
  }

  /** Waits until its output contains `text`. @throws Error when it ends first */
  async untilOutput(text: string, signal: AbortSignal): Promise<void> {
    while (!this.#output.includes(text)) {
      if (this.#isEnded) throw new Error(`Container ${this.id} ended before it wrote "${text}": ${this.#output}`);
      await sleep(5, undefined, { signal });
    }
  }

  async stop(): Promise<void> {
    if (!this.#isEnded) {
      await this.#containerd
        .ctr(['tasks', 'kill', '--signal', 'SIGKILL', this.id], AbortSignal.timeout(30_000))
        .catch(() => '');
    }
    await this.ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}

async function startContainerd(options: ContainerdOptions, signal: AbortSignal): Promise<ServerProcess> {
  const { folder } = options;
  const snapshotters = {
    ...(options.snapshotterSocket === undefined ? {} : { kindling: options.snapshotterSocket }),
    ...options.snapshotters,
  };
  const disabled = [
    ...(options.cri === undefined ? ['io.containerd.grpc.v1.cri'] : []),
    ...['aufs', 'btrfs', 'devmapper', 'zfs'].map((name) => `io.containerd.snapshotter.v1.${name}`),
    'io.containerd.internal.v1.opt',
    'io.containerd.tracing.processor.v1.otlp',
  ];
  const config = [
    'version = 2',
    `root = "${folder}/root"`,
    `state = "${folder}/state"`,
    `disabled_plugins = ${JSON.stringify(disabled)}`,
    '[grpc]',
    `address = "${folder}/c.sock"`,
    '[ttrpc]',
    `address = "${folder}/c.sock.ttrpc"`,
    ...Object.entries(snapshotters).flatMap(([name, address]) => [
      `[proxy_plugins.${name}]`,
      'type = "snapshot"',
      `address = "${address}"`,
    ]),
    ...(options.cri === undefined ? [] : ['[plugins."io.containerd.grpc.v1.cri"]', options.cri]),
    '',
  ].join('\n');
  await writeFile(`${folder}/containerd.toml`, config);
  return await ServerProcess.start(
    {
      name: 'containerd',
      program: 'containerd',
      args: ['--config', `${folder}/containerd.toml`, '--log-level', 'warn'],
      ready: async () => await isListening({ path: `${folder}/c.sock` }),
    },
    signal,
  );
}
