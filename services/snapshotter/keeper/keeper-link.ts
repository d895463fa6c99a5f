import { flushCompileCache } from 'node:module';
import { Socket } from 'node:net';

/** When the start is over and its work does not wait for this. */
const FLUSH_AFTER_MS = 1000;

const TURNS = ['first', 'next', 'standby', 'compile'] as const;
/**
 * `first`: of a session that is new, so nobody waits. `next`: after one that has ended, readers wait. `standby`: beside one that
 * serves, until `go`. `compile`: only loads its modules, so that the cache has them compiled, and ends.
 */
export type Turn = (typeof TURNS)[number];

/**
 * The agent's side of the keeper: node's IPC channel, JSON messages.
 *
 * keeper -> agent: `go` (serve now; to one that stands by), `ping`, `connection` (with a socket: see FrontDoor).
 * agent -> keeper: `loaded` (modules are there, waiting for `go`), `ready`, `bye` (ends by intent), `pong`, `taken` (for each `connection`,
 * in order).
 *
 * Between `loaded` and `go` an agent must not touch what the serving agent holds (sockets, database, mounts).
 */
export interface KeeperLink {
  /** `/dev/fuse`, already mounted on `directory`; undefined where the transport is `native`. */
  readonly fuse: { readonly fd: number; readonly directory: string } | undefined;
  /** Socket that the keeper listens on in place of the agent; undefined: it does not. */
  readonly heldSocket: string | undefined;
  /** Where connections to the held socket go; they come only after `ready`. */
  onConnection(handler: (socket: Socket) => void): void;
  readonly turn: Turn;
  /** Says `loaded` and waits until this agent is to serve, which is at once where it does not stand by. */
  waitForGo(signal: AbortSignal): Promise<void>;
  /** Serving: FUSE and the snapshots socket answer. */
  ready(): void;
  /** Aborts when the keeper is gone: the agent must end, since nobody can hand its session on. */
  readonly lost: AbortSignal;
  /**
   * Ends this process at once, by SIGKILL: reads on /dev/fuse that sit in libuv's pool would keep an ordinary exit waiting.
   * Call it when all is written and closed.
   */
  leave(): Promise<never>;
}

export type ToAgent = { readonly kind: 'go' | 'ping' | 'connection' };
export type ToKeeper = { readonly kind: 'loaded' | 'ready' | 'bye' | 'pong' | 'taken' };

/** Undefined when no keeper started this process. */
export function connectKeeper(env: Readonly<Record<string, string | undefined>> = process.env): KeeperLink | undefined {
  if (env['KINDLING_KEEPER'] === undefined || process.send === undefined) return undefined;
  const fd = Number(env['KINDLING_FUSE_FD'] ?? '');
  const directory = env['KINDLING_KEEPER'];
  const turn = TURNS.find((known) => known === env['KINDLING_TURN']) ?? 'first';
  const lost = new AbortController();
  const go = Promise.withResolvers<void>();
  const tell = async (kind: ToKeeper['kind']): Promise<void> => {
    await new Promise<void>((resolve) => {
      if (process.send === undefined || !process.connected) return resolve();
      // A keeper that is gone is noticed by `disconnect`, not here.
      process.send({ kind } satisfies ToKeeper, undefined, undefined, () => resolve());
    });
  };
  let connection = (socket: Socket): void => void socket.destroy();
  process.on('message', (message: ToAgent, handle: unknown) => {
    if (message.kind === 'go') go.resolve();
    else if (message.kind === 'ping') void tell('pong');
    else {
      // Before it is read: of what was not acknowledged the keeper thinks that it is untouched.
      void tell('taken');
      if (handle instanceof Socket) connection(handle);
    }
  });
  process.once('disconnect', () => lost.abort(new Error('The keeper is gone')));
  return {
    fuse: fd > 2 ? { fd, directory } : undefined,
    turn,
    heldSocket: env['KINDLING_HELD_SOCKET'] || undefined,
    onConnection(handler) {
      connection = handler;
    },
    lost: lost.signal,
    async waitForGo(signal) {
      if (turn !== 'standby') return;
      await tell('loaded');
      await new Promise<void>((resolve, reject) => {
        const abort = () => reject(signal.reason instanceof Error ? signal.reason : new Error('aborted'));
        if (signal.aborted) return abort();
        signal.addEventListener('abort', abort, { once: true });
        void go.promise.then(() => {
          signal.removeEventListener('abort', abort);
          resolve();
        });
      });
    },
    ready() {
      void tell('ready');
      // Node does it at an ordinary exit, which this process may never have.
      setTimeout(flushCompileCache, FLUSH_AFTER_MS).unref();
    },
    async leave() {
      await tell('bye');
      process.kill(process.pid, 'SIGKILL');
      return await new Promise<never>(() => {});
    },
  };
}
