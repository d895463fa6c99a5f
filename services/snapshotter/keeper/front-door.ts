import { chmod, lstat, mkdir, rename, rm } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { dirname } from 'node:path';

/** Takes over connections. */
export interface Doorkeeper {
  /** False when it ended, or is about to, before it had the socket; that is then still the caller's. */
  take(socket: Socket): Promise<boolean>;
}

/**
 * A client that connects in the instant in which an agent dies is quicker than the news of that death: handing on waits
 * this long. containerd connects once per agent.
 */
const HAND_ON_AFTER_MS = 10;
/** Connections that wait for an agent. containerd has one; past this they are refused. */
const MAX_WAITING = 64;

/**
 * The agent's socket, held by the keeper: while one agent follows another, clients wait and are not refused. containerd answers
 * "unavailable" for up to three seconds after it once was.
 */
export class FrontDoor {
  readonly #server: Server;
  readonly #path: string;
  readonly #inode: number;
  #waiting: Socket[] = [];
  /** Those that an agent has not got yet. */
  readonly #offered = new Set<Socket>();
  #closed = false;
  #agent: Doorkeeper | undefined;

  private constructor(server: Server, path: string, inode: number) {
    this.#server = server;
    this.#path = path;
    this.#inode = inode;
    server.on('connection', (socket) => {
      socket.on('error', () => socket.destroy());
      if (this.#waiting.length + this.#offered.size >= MAX_WAITING) {
        socket.destroy();
        return;
      }
      this.#waiting.push(socket);
      this.#handOnSoon();
    });
  }

  /** Takes the place of a socket that is there in one step. Only root may connect. */
  static async open(path: string): Promise<FrontDoor> {
    const fresh = `${path}.${process.pid}`;
    await mkdir(dirname(path), { recursive: true });
    await rm(fresh, { force: true });
    // Paused: not a byte is read here, all of them are for the agent.
    const server = createServer({ pauseOnConnect: true, allowHalfOpen: true });
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(fresh, resolve);
    });
    await chmod(fresh, 0o600);
    const { ino } = await lstat(fresh);
    await rename(fresh, path);
    server.on('error', () => {});
    return new FrontDoor(server, path, ino);
  }

  /** The agent that connections go to from now on; undefined: they wait for the next one. */
  lead(agent: Doorkeeper | undefined): void {
    this.#agent = agent;
    this.#handOn();
  }

  async close(): Promise<void> {
    this.#closed = true;
    for (const socket of [...this.#waiting.splice(0), ...this.#offered]) socket.destroy();
    this.#server.close();
    const here = await lstat(this.#path).catch(() => undefined);
    if (here?.ino === this.#inode) await rm(this.#path, { force: true });
  }

  #handOnSoon(): void {
    setTimeout(() => this.#handOn(), HAND_ON_AFTER_MS);
  }

  #handOn(): void {
    const agent = this.#agent;
    if (agent === undefined) return;
    for (const socket of this.#waiting.splice(0)) void this.#offer(socket, agent);
  }

  async #offer(socket: Socket, agent: Doorkeeper): Promise<void> {
    if (socket.destroyed) return;
    this.#offered.add(socket);
    const taken = await agent.take(socket);
    this.#offered.delete(socket);
    if (taken || this.#closed) return;
    this.#waiting.push(socket);
    if (this.#agent !== agent) this.#handOn();
  }
}
