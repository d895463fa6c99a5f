import { spawn } from 'node:child_process';
import type { Socket } from 'node:net';
import { readFile, realpath, writeFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ToAgent, ToKeeper, Turn } from './keeper-link.ts';
import type { LogRelay } from './log-relay.ts';

export interface AgentEnd {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  /** It said that it ends. */
  readonly intended: boolean;
}

/** One agent, from its start to its end. */
export interface AgentProcess {
  readonly pid: number;
  /** The script with links followed: the version it was started from. */
  readonly script: string;
  readonly isReady: boolean;
  /** False when it ended before. */
  loaded(timeoutMs: number): Promise<boolean>;
  ready(timeoutMs: number): Promise<boolean>;
  readonly ended: Promise<AgentEnd>;
  go(): void;
  /** Hands a connection on; false when it ended, or is about to, before it had it. */
  take(socket: Socket): Promise<boolean>;
  /** SIGTERM, and after `timeoutMs` SIGKILL. Settles at its end. */
  stop(timeoutMs: number): Promise<void>;
  kill(): void;
}

/** How often the agent is looked at: a reader may wait this much longer for the end of an agent that no event tells of. */
const CHECK_MS = 100;
/** In which the event comes, where one does: a busy machine takes its time to end a process of many threads. */
const EVENT_MS = 50;
const PING_EVERY_CHECKS = 50;
/** An event loop that is stuck this long serves nobody: the next agent can. Long enough for a machine that is overloaded. */
const SILENT_MS = 60_000;

export interface AgentStart {
  readonly nodeArguments: readonly string[];
  /** Instead of what the link in the arguments leads to. */
  readonly script: string | undefined;
  readonly fuseFd: number | undefined;
  readonly mount: string;
  /** Path of the socket whose connections it gets by `take`. */
  readonly socket: string | undefined;
  readonly turn: Turn;
  /** Folder for the compiled modules of the agent. */
  readonly cache: string | undefined;
}

/** The script of the agent as it is now, links followed. */
export async function currentScript(nodeArguments: readonly string[]): Promise<string> {
  const script = nodeArguments.find((argument) => !argument.startsWith('-')) ?? '';
  return await realpath(script).catch(() => script);
}

/** More than a slow machine takes; the agent then compiles for itself. */
const COMPILE_TIMEOUT_MS = 20_000;
/** Characters of a path that name what was compiled: file names end at 255 bytes. */
const MAX_NAME = 200;

/**
 * Has the modules of a version that has not run here yet compiled by a process of its own. An agent that did it itself would keep
 * the compiler in memory. Never rejects: without it the agent is larger, and right.
 */
export async function compileAgent(
  start: Pick<AgentStart, 'nodeArguments' | 'mount' | 'cache'>,
  script: string,
): Promise<void> {
  const cache = process.env['NODE_COMPILE_CACHE'] ?? start.cache;
  if (cache === undefined) return;
  const done = `${cache}/compiled-${encodeURIComponent(`${process.version}${script}`).slice(-MAX_NAME)}`;
  if ((await readFile(done).catch(() => undefined)) !== undefined) return;
  const at = start.nodeArguments.findIndex((argument) => !argument.startsWith('-'));
  const child = spawn(process.execPath, start.nodeArguments.with(at, script), {
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
    timeout: COMPILE_TIMEOUT_MS,
    killSignal: 'SIGKILL',
    env: { NODE_COMPILE_CACHE: cache, ...process.env, KINDLING_KEEPER: start.mount, KINDLING_TURN: 'compile' },
  });
  const code = await new Promise<number | null>((resolve) => {
    child.once('exit', resolve);
    child.once('error', () => resolve(null));
  });
  if (code === 0) await writeFile(done, script).catch(() => {});
}

export function startAgent(start: AgentStart & { readonly script: string }, log: LogRelay): AgentProcess {
  const { nodeArguments, script, fuseFd, mount } = start;
  const at = nodeArguments.findIndex((argument) => !argument.startsWith('-'));
  const child = spawn(process.execPath, nodeArguments.with(at, script), {
    // A session of its own: what a terminal sends to its programs is for the keeper to hand on.
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe', fuseFd ?? 'ignore', 'ipc'],
    env: {
      // Reads of the FUSE descriptor wait in libuv's pool; files and mounts need threads beside them.
      UV_THREADPOOL_SIZE: '16',
      MALLOC_ARENA_MAX: '2',
      // Compiled modules: the next agent starts in a fraction of the time.
      ...(start.cache === undefined ? {} : { NODE_COMPILE_CACHE: start.cache }),
      ...process.env,
      KINDLING_KEEPER: mount,
      KINDLING_FUSE_FD: fuseFd === undefined ? '' : '3',
      KINDLING_HELD_SOCKET: start.socket ?? '',
      KINDLING_TURN: start.turn,
    },
  });
  const pid = child.pid ?? 0;
  const loaded = Promise.withResolvers<boolean>();
  const ready = Promise.withResolvers<boolean>();
  const ended = Promise.withResolvers<AgentEnd>();
  /** Of the connections that were sent to it and that it has not acknowledged, in order. */
  const taking: ((taken: boolean) => void)[] = [];
  let isReady = false;
  let intended = false;
  let over = false;
  let stopping = false;
  let heardAt = performance.now();

  child.stdout?.on('data', (part: Buffer) => log.write(part));
  child.stderr?.on('data', (part: Buffer) => log.write(part));
  child.on('message', (message: ToKeeper) => {
    heardAt = performance.now();
    if (message.kind === 'loaded') loaded.resolve(true);
    else if (message.kind === 'ready') {
      isReady = true;
      loaded.resolve(true);
      ready.resolve(true);
    } else if (message.kind === 'bye') intended = true;
    else if (message.kind === 'taken') taking.shift()?.(true);
  });
  const end = (code: number | null, signal: NodeJS.Signals | null): void => {
    if (over) return;
    over = true;
    clearInterval(timer);
    loaded.resolve(false);
    ready.resolve(false);
    ended.resolve({ code, signal, intended });
  };
  child.on('exit', end);
  child.on('error', (error) => {
    log.say('error', `Cannot start the agent ${script}: ${error.message}`);
    if (child.pid === undefined) end(null, null);
  });

  const tell = (message: ToAgent): void => {
    // It may be gone already: then `exit` tells.
    if (child.connected) child.send(message, () => {});
  };
  let checks = 0;
  const check = async (): Promise<void> => {
    if (++checks % PING_EVERY_CHECKS === 0) {
      tell({ kind: 'ping' });
      if (isReady && performance.now() - heardAt > SILENT_MS) {
        log.say('error', 'The agent does not answer any more: it is killed', { agent: pid });
        child.kill('SIGKILL');
      }
    }
    // A thread that waits in the kernel for our own FUSE session keeps a killed agent from ending, and only the next agent
    // can answer it. Its main thread is a zombie by then, which no event tells.
    if (!(await isZombie(pid))) return;
    await sleep(EVENT_MS);
    if (!over && (await isZombie(pid))) {
      log.say('warn', 'The agent was killed within a call on its own mounts: the next one answers it', { agent: pid });
      end(null, 'SIGKILL');
    }
  };
  const timer = setInterval(() => void check(), CHECK_MS);

  return {
    pid,
    script,
    get isReady() {
      return isReady;
    },
    loaded: async (timeoutMs) => await within(loaded.promise, timeoutMs),
    ready: async (timeoutMs) => await within(ready.promise, timeoutMs),
    ended: ended.promise,
    go: () => tell({ kind: 'go' }),
    async take(socket) {
      if (over || stopping || !isReady || !child.connected) return false;
      // Node would close its copy when the other side has it, but leaks it when that dies first; so this one is closed here.
      child.send({ kind: 'connection' } satisfies ToAgent, socket, { keepOpen: true }, () => {});
      const taken = new Promise<boolean>((resolve) => taking.push(resolve));
      if (!(await Promise.race([taken, ended.promise.then(() => false)]))) return false;
      socket.destroy();
      return true;
    },
    kill: () => void child.kill('SIGKILL'),
    async stop(timeoutMs) {
      stopping = true;
      child.kill('SIGTERM');
      if (
        (await within(
          ended.promise.then(() => true),
          timeoutMs,
        )) === false
      )
        child.kill('SIGKILL');
      await ended.promise;
    },
  };
}

async function isZombie(pid: number): Promise<boolean> {
  return /\) Z /.test(await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => ''));
}

async function within(promise: Promise<boolean>, timeoutMs: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<boolean>((resolve) => {
    timer = setTimeout(resolve, timeoutMs, false);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
