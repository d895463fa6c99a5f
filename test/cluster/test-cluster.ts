import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { request } from 'node:http';
import { text } from 'node:stream/consumers';
import { AGENT_FLAGS } from '#services/snapshotter/keeper/keeper-arguments.ts';
import { ServerProcess, isListening } from '#test/harness/server-process.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { runTool } from '#test/images/tool.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import type { Misbehaviour } from './misbehaviour.ts';
import { Network, type Host, type Link } from './network.ts';
import type { StoredLayer } from './shared-layer.ts';
import type { LayerPart, LayerReference, StartupSpan } from './sharing-node.ts';

export interface Fetched {
  /** Bytes of the layer by where they came from. */
  readonly registry: number;
  readonly peer: number;
  readonly errors: number;
  /** How long the order took, as the node saw it. */
  readonly completeMs: number;
  /** Of `startUp`: what the start reads. */
  readonly startup: readonly StartupSpan[];
  /** Of the layer image as a reader sees it. */
  readonly digest: string;
  /** Whether the distributor answers. */
  readonly up: boolean;
  /** How often it has said again all that it has. */
  readonly announced: number;
}

export interface ClusterOptions {
  readonly nodes: number;
  readonly link: Link;
  readonly registryLink?: Link;
  readonly layers: readonly StoredLayer[];
  /** Replicas of the distributor; 0 = none, so that every node goes to the registry. */
  readonly distributors?: number;
  /** `KINDLING_PEER_…` of all nodes. */
  readonly env?: Readonly<Record<string, string>>;
}

const NODE = new URL('./node-main.ts', import.meta.url).pathname;
const DISTRIBUTOR = new URL('../../services/distributor/main.ts', import.meta.url).pathname;
const UNMOUNT_MS = 10_000;
const FLAGS = ['--disable-warning=ExperimentalWarning', '--max-semi-space-size=4'];

/** NATS, Redis, distributors, a registry and nodes, all real processes, each with its own shaped link. */
export class TestCluster implements AsyncDisposable {
  readonly network: Network;
  readonly nodes: readonly ClusterNode[];
  readonly distributors: readonly ServerProcess[];
  readonly registry: Host;
  readonly #services: Host;
  readonly #folder: TempFolder;
  readonly #closing: AsyncDisposableStack;
  /** They may be others than at first; nodes end before them, and quickly. */
  readonly #servers: Servers;

  private constructor(parts: Parts, closing: AsyncDisposableStack) {
    this.network = parts.network;
    this.nodes = parts.nodes;
    this.distributors = parts.distributors;
    this.registry = parts.registry;
    this.#services = parts.services;
    this.#folder = parts.folder;
    this.#servers = parts.servers;
    this.#closing = closing;
  }

  static async start(options: ClusterOptions, signal: AbortSignal): Promise<TestCluster> {
    await using closing = new AsyncDisposableStack();
    const folder = closing.use(await TempFolder.create('kc'));
    await pushAll(folder.path, options.layers, signal);
    const network = closing.use(await Network.create(signal));
    const services = await network.host({}, signal);
    const registry = await network.host(options.registryLink ?? options.link, signal);
    const servers: Servers = {
      nats: await startNats(services, folder.join('nats'), signal),
      redis: await startRedis(services, signal),
      registry: await startRegistry(registry, folder.path, signal),
    };
    closing.defer(async () => {
      await Promise.all([servers.nats[Symbol.asyncDispose](), servers.redis[Symbol.asyncDispose]()]);
    });
    closing.use(servers.registry);
    const distributors: ServerProcess[] = [];
    while (distributors.length < (options.distributors ?? 1)) {
      distributors.push(closing.use(await startDistributor(services, registry, signal)));
    }
    const nodes: ClusterNode[] = [];
    for (let i = 0; i < options.nodes; i++) {
      const host = await network.host(options.link, signal);
      const args = [natsUrl(services), host.address, `${registry.address}:5000`];
      nodes.push(new ClusterNode(host, `n${i}`, folder.path, args, options.env ?? {}));
    }
    for (const node of nodes) {
      closing.defer(async () => await node.limitDisk(undefined, AbortSignal.timeout(UNMOUNT_MS)));
      closing.use(node);
    }
    // All of them have started or failed before anything is taken away.
    const started = await Promise.allSettled(nodes.map(async (node) => await node.start(signal)));
    for (const one of started) if (one.status === 'rejected') throw one.reason;
    const parts = { network, services, registry, servers, distributors, nodes, folder };
    return new TestCluster(parts, closing.move());
  }

  reference({ digest, sizeBytes, mediaType, annotations }: StoredLayer): LayerReference {
    return { image: `${this.registry.address}:5000/app:latest`, digest, sizeBytes, mediaType, annotations };
  }

  /** Bytes that have left the registry's host. */
  async registryBytes(signal: AbortSignal): Promise<number> {
    return await this.registry.bytesSent(signal);
  }

  /** Processor time that each part of the cluster has used so far. */
  async processorTime(): Promise<Readonly<Record<'nodes' | 'distributors' | 'servers', ProcessorTime>>> {
    const { nats, redis, registry } = this.#servers;
    return {
      nodes: await processorTime(this.nodes.flatMap(({ pid }) => pid ?? [])),
      distributors: await processorTime(this.distributors.map(({ pid }) => pid)),
      servers: await processorTime([nats.pid, redis.pid, registry.pid]),
    };
  }

  killNats(): void {
    this.#servers.nats.kill('SIGKILL');
  }

  async restartNats(signal: AbortSignal): Promise<void> {
    await this.#servers.nats[Symbol.asyncDispose]();
    this.#servers.nats = await startNats(this.#services, this.#folder.join('nats'), signal);
  }

  /** Kills Redis and starts an empty one. */
  async restartRedis(signal: AbortSignal): Promise<void> {
    this.#servers.redis.kill('SIGKILL');
    await this.#servers.redis[Symbol.asyncDispose]();
    this.#servers.redis = await startRedis(this.#services, signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#closing.disposeAsync();
  }
}

export interface ProcessorTime {
  readonly userMs: number;
  readonly systemMs: number;
}

/** A clock tick of /proc. */
const TICK_MS = 10;

async function processorTime(pids: readonly number[]): Promise<ProcessorTime> {
  let userMs = 0;
  let systemMs = 0;
  for (const pid of pids) {
    const text = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
    // From the third field on: the second, the program's name, may hold anything.
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
    userMs += (Number(fields[11]) || 0) * TICK_MS;
    systemMs += (Number(fields[12]) || 0) * TICK_MS;
  }
  return { userMs, systemMs };
}

interface Servers {
  readonly registry: ServerProcess;
  nats: ServerProcess;
  redis: ServerProcess;
}

interface Parts {
  readonly network: Network;
  readonly services: Host;
  readonly registry: Host;
  readonly servers: Servers;
  readonly distributors: readonly ServerProcess[];
  readonly nodes: readonly ClusterNode[];
  readonly folder: TempFolder;
}

type Order =
  | LayerReference
  | (LayerReference & { readonly file: string })
  | (LayerReference & { readonly how: Misbehaviour })
  | readonly LayerPart[];

/** One node's process, and orders to it. */
export class ClusterNode implements AsyncDisposable {
  readonly host: Host;
  readonly #name: string;
  readonly #folder: string;
  readonly #args: readonly string[];
  readonly #env: Readonly<Record<string, string>>;
  #process: ServerProcess | undefined;
  #limited = false;

  constructor(
    host: Host,
    name: string,
    folder: string,
    args: readonly string[],
    env: Readonly<Record<string, string>>,
  ) {
    this.host = host;
    this.#name = name;
    this.#folder = folder;
    this.#args = [...AGENT_FLAGS, NODE, folder, name, ...args];
    this.#env = env;
  }

  get log(): string {
    return this.#process?.log ?? '';
  }

  get pid(): number | undefined {
    return this.#process?.pid;
  }

  async start(signal: AbortSignal): Promise<void> {
    const path = `${this.#folder}/${this.#name}.sock`;
    const ready = async () => await isListening({ path });
    this.#process = await this.host.serve(
      { name: this.#name, program: process.execPath, args: this.#args, ready, env: plainEnvironment(this.#env) },
      signal,
    );
  }

  kill(): void {
    this.#process?.kill('SIGKILL');
  }

  provide(layer: LayerReference, signal: AbortSignal): Promise<Fetched> {
    return this.#ask('/provide', layer, signal);
  }

  /** Puts a layer's index, which is in the file, into the cluster's store. */
  publishIndex(layer: LayerReference, file: string, signal: AbortSignal): Promise<Fetched> {
    return this.#ask('/index', { ...layer, file }, signal);
  }

  /** What a start reads, fetched as its profile says. */
  startUp(parts: readonly LayerPart[], signal: AbortSignal): Promise<Fetched> {
    return this.#ask('/start', parts, signal);
  }

  startupDigest(parts: readonly LayerPart[], signal: AbortSignal): Promise<Fetched> {
    return this.#ask('/startup-digest', parts, signal);
  }

  fetchAll(layer: LayerReference, signal: AbortSignal): Promise<Fetched> {
    return this.#ask('/fetch', layer, signal);
  }

  /** Reads the layer image from begin to end, as a start does. */
  read(layer: LayerReference, signal: AbortSignal): Promise<Fetched> {
    return this.#ask('/read', layer, signal);
  }

  /** From now on until it ends it is a bad peer to those that ask for the layer. */
  misbehave(layer: LayerReference, how: Misbehaviour, signal: AbortSignal): Promise<Fetched> {
    return this.#ask('/misbehave', { ...layer, how }, signal);
  }

  /** While it does not run: from its next start on its disk has only so much, and nothing on it; undefined = as before. */
  async limitDisk(sizeBytes: number | undefined, signal: AbortSignal): Promise<void> {
    const path = `${this.#folder}/${this.#name}`;
    if (this.#limited) await runTool('umount', [path], signal);
    this.#limited = false;
    if (sizeBytes === undefined) return;
    await mkdir(path, { recursive: true });
    await runTool('mount', ['-t', 'tmpfs', '-o', `size=${sizeBytes}`, 'tmpfs', path], signal);
    this.#limited = true;
  }

  figures(layer: LayerReference, signal: AbortSignal): Promise<Fetched> {
    return this.#ask('/figures', layer, signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process?.[Symbol.asyncDispose]();
  }

  async #ask(path: string, order: Order, signal: AbortSignal): Promise<Fetched> {
    const socketPath = `${this.#folder}/${this.#name}.sock`;
    const answer = await new Promise<{ readonly status: number; readonly body: string }>((resolve, reject) => {
      const sent = request({ socketPath, path, method: 'POST', signal }, (response) => {
        text(response).then((body) => resolve({ status: response.statusCode ?? 0, body }), reject);
      });
      sent.on('error', reject);
      sent.end(JSON.stringify(order));
    });
    if (answer.status !== 200) throw new Error(`${this.#name} cannot ${path}: ${answer.body}\n${this.log}`);
    return JSON.parse(answer.body) as Fetched;
  }
}

function natsUrl(services: Host): string {
  return `nats://${services.address}:4222`;
}

function plainEnvironment(extra: Readonly<Record<string, string>> = {}): NodeJS.ProcessEnv {
  const env = Object.entries(process.env).filter(([name]) => !name.startsWith('KINDLING_'));
  return { ...Object.fromEntries(env), ...extra };
}

/** Whether something on the host listens; asked from within its namespace. */
function listening(host: Host, port: number): () => Promise<boolean> {
  return async () => await host.isListening(port, AbortSignal.timeout(5_000));
}

async function startNats(host: Host, folder: string, signal: AbortSignal): Promise<ServerProcess> {
  const args = ['-a', host.address, '-p', '4222', '-js', '-sd', folder];
  return await host.serve({ name: 'nats', program: 'nats-server', args, ready: listening(host, 4222) }, signal);
}

async function startRedis(host: Host, signal: AbortSignal): Promise<ServerProcess> {
  const args = ['--port', '6379', '--bind', host.address, '--save', '', '--protected-mode', 'no'];
  return await host.serve({ name: 'redis', program: 'redis-server', args, ready: listening(host, 6379) }, signal);
}

async function startDistributor(host: Host, registry: Host, signal: AbortSignal): Promise<ServerProcess> {
  const env = plainEnvironment({
    NATS_URL: natsUrl(host),
    REDIS_URL: `redis://${host.address}:6379`,
    KINDLING_DISTRIBUTOR_REGISTRIES: `${registry.address}:5000`,
    KINDLING_PLAIN_HTTP_REGISTRIES: `${registry.address}:5000`,
  });
  const server: { it?: ServerProcess } = {};
  const args = [...FLAGS, DISTRIBUTOR];
  server.it = await host.serve(
    { name: 'distributor', program: process.execPath, args, env, ready: () => Promise.resolve(true) },
    signal,
  );
  return server.it;
}

async function startRegistry(host: Host, folder: string, signal: AbortSignal): Promise<ServerProcess> {
  const config = {
    version: '0.1',
    log: { level: 'error', accesslog: { disabled: true } },
    storage: { filesystem: { rootdirectory: `${folder}/data` } },
    http: { addr: `${host.address}:5000` },
  };
  await writeFile(`${folder}/registry-host.yml`, JSON.stringify(config));
  const env: NodeJS.ProcessEnv = { ...process.env, OTEL_TRACES_EXPORTER: 'none' };
  const args = ['serve', `${folder}/registry-host.yml`];
  const options = { name: 'registry', program: 'docker-registry', args, env, stopTimeoutMs: 3_000 };
  return await host.serve({ ...options, ready: listening(host, 5000) }, signal);
}

/** Into the data that the registry will serve. */
async function pushAll(folder: string, layers: readonly StoredLayer[], signal: AbortSignal): Promise<void> {
  await using registry = await TestRegistry.start({ folder }, signal);
  for (const { blob, digest } of layers) {
    const url = `http://${registry.host}/v2/app/blobs/uploads/`;
    const begun = await fetch(url, { method: 'POST', signal });
    await begun.arrayBuffer();
    const location = new URL(begun.headers.get('location') ?? '', url);
    location.searchParams.set('digest', digest);
    const headers = { 'content-type': 'application/octet-stream' };
    const put = await fetch(location, { method: 'PUT', headers, body: new Uint8Array(blob), signal });
    const answer = await put.text();
    if (!put.ok) throw new Error(`Cannot push ${digest}: ${put.status} ${answer}`);
  }
}
