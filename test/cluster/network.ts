import { existsSync } from 'node:fs';
import { networkNamespaces, ownerOf } from '#test/harness/leaks.ts';
import { disposeOnInterrupt } from '#test/harness/interrupt.ts';
import { ServerProcess, type ServerOptions } from '#test/harness/server-process.ts';
import { runTool } from '#test/images/tool.ts';

export interface Link {
  /** Each way; undefined = as fast as the machine. */
  readonly bitsPerS?: number;
  /** Added to each packet that leaves the host. */
  readonly delayMs?: number;
}

const TIMEOUT_MS = 30_000;

/** A host of the network: a namespace with one link to the switch. */
export class Host {
  readonly namespace: string;
  readonly address: string;
  /** Name of its end at the switch. */
  readonly port: string;

  constructor(namespace: string, address: string, port: string) {
    this.namespace = namespace;
    this.address = address;
    this.port = port;
  }

  async bytesSent(signal: AbortSignal): Promise<number> {
    const path = '/sys/class/net/eth0/statistics/tx_bytes';
    return Number(await runTool('ip', ['netns', 'exec', this.namespace, 'cat', path], signal));
  }

  async isListening(port: number, signal: AbortSignal): Promise<boolean> {
    const filter = `sport = :${port}`;
    const sockets = await runTool('ip', ['netns', 'exec', this.namespace, 'ss', '-Hltn', filter], signal);
    return sockets.trim() !== '';
  }

  /** A server on this host. */
  async serve(options: ServerOptions, signal: AbortSignal): Promise<ServerProcess> {
    const args = ['netns', 'exec', this.namespace, options.program, ...options.args];
    return await ServerProcess.start({ ...options, program: 'ip', args }, signal);
  }
}

/** Hosts in network namespaces of their own, each with a shaped link to one switch; nothing of it touches the machine's network. */
export class Network implements AsyncDisposable {
  readonly #name: string;
  readonly #hosts: Host[] = [];
  readonly #forget: () => void;
  readonly #making = new Set<Promise<unknown>>();
  #closing = false;

  private constructor(name: string) {
    this.#name = name;
    this.#forget = disposeOnInterrupt(this);
  }

  /** Also takes away what runs have left that were killed. */
  static async create(signal: AbortSignal): Promise<Network> {
    for (const name of await networkNamespaces()) {
      const owner = ownerOf(name);
      if (owner !== undefined && !existsSync(`/proc/${owner}`))
        await ip(['netns', 'del', name], signal).catch(() => {});
    }
    const network = new Network(`kc${process.pid}`);
    try {
      await network.#make(async () => {
        await ip(['netns', 'add', network.#name], signal);
        await ip(['-n', network.#name, 'link', 'add', 'br0', 'type', 'bridge'], signal);
        await ip(['-n', network.#name, 'link', 'set', 'br0', 'up'], signal);
      });
      return network;
    } catch (error) {
      await network[Symbol.asyncDispose]();
      throw error;
    }
  }

  async host(link: Link, signal: AbortSignal): Promise<Host> {
    return await this.#make(async () => await this.#host(link, signal));
  }

  async #host(link: Link, signal: AbortSignal): Promise<Host> {
    const number = this.#hosts.length + 1;
    const host = new Host(`${this.#name}-${number}`, `10.77.0.${number}`, `p${number}`);
    this.#hosts.push(host);
    const { namespace, address, port } = host;
    await ip(['netns', 'add', namespace], signal);
    await ip(
      ['-n', this.#name, 'link', 'add', port, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', namespace],
      signal,
    );
    await ip(['-n', this.#name, 'link', 'set', port, 'master', 'br0', 'up'], signal);
    await ip(['-n', namespace, 'addr', 'add', `${address}/24`, 'dev', 'eth0'], signal);
    for (const device of ['lo', 'eth0']) await ip(['-n', namespace, 'link', 'set', device, 'up'], signal);
    await this.shape(host, link, signal);
    return host;
  }

  /** Changes a host's link, both ways. */
  async shape(host: Host, link: Link, signal: AbortSignal): Promise<void> {
    for (const [namespace, device] of [
      [host.namespace, 'eth0'],
      [this.#name, host.port],
    ] as const) {
      await tc(namespace, ['qdisc', 'del', 'dev', device, 'root'], signal).catch(() => {});
      if (link.bitsPerS === undefined) continue;
      const burst = Math.max(16_384, Math.round(link.bitsPerS / 8 / 250));
      const limits = ['burst', String(burst), 'latency', '50ms'];
      await tc(
        namespace,
        ['qdisc', 'add', 'dev', device, 'root', 'tbf', 'rate', `${link.bitsPerS}`, ...limits],
        signal,
      );
    }
  }

  /** Cuts the host off, or connects it again. */
  async connect(host: Host, connected: boolean, signal: AbortSignal): Promise<void> {
    await ip(['-n', this.#name, 'link', 'set', host.port, connected ? 'up' : 'down'], signal);
  }

  /** Also when it is interrupted while it is being made. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing = true;
    await Promise.allSettled(this.#making);
    const signal = AbortSignal.timeout(TIMEOUT_MS);
    for (const name of [...this.#hosts.map(({ namespace }) => namespace), this.#name]) {
      await ip(['netns', 'del', name], signal).catch(() => {});
    }
    this.#forget();
  }

  async #make<T>(make: () => Promise<T>): Promise<T> {
    if (this.#closing) throw new Error('Cannot make a host: the network is being taken away');
    const making = make();
    this.#making.add(making);
    try {
      return await making;
    } finally {
      this.#making.delete(making);
    }
  }
}

async function ip(args: readonly string[], signal: AbortSignal): Promise<void> {
  await tool('ip', args, signal);
}

async function tc(namespace: string, args: readonly string[], signal: AbortSignal): Promise<void> {
  await tool('tc', ['-n', namespace, ...args], signal);
}

/** Each takes a moment and is not cut off within it: what it has made would not be known. */
async function tool(program: string, args: readonly string[], signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  await runTool(program, args, AbortSignal.timeout(TIMEOUT_MS));
}
