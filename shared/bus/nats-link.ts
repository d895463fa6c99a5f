import { randomInt } from 'node:crypto';
import {
  connect,
  credsAuthenticator,
  DiscardPolicy,
  RetentionPolicy,
  StorageType,
  type ConnectionOptions,
  type JetStreamClient,
  type JetStreamManager,
  type NatsConnection,
} from 'nats';
import type { Logger } from '#shared/telemetry/logger.ts';
import { BUS_LIMITS, BusError } from './bus.ts';
import { cancelled, pause, within } from './deadline.ts';

export interface NatsOptions {
  /** `nats://[user:password@]host:port`, several separated by commas; `tls://` for TLS. */
  readonly url: string;
  /** Content of a credentials file. */
  readonly credentials?: Uint8Array;
  /** Shown by the server; the service's name. */
  readonly clientName: string;
  readonly logger: Logger;
  /** Copies the server cluster keeps of each stream. */
  readonly replicas?: number;
  /** Space for all objects, where they are not set up yet. */
  readonly objectBytes?: number;
  /** Parts of an object that never became whole are removed when they are older. */
  readonly orphanMs?: number;
  /** A claim that is not renewed ends after this. */
  readonly claimTtlMs?: number;
  /** How long a call waits for a connection; `BUS_LIMITS.waitMs` unless told otherwise. */
  readonly waitMs?: number;
}

export const EVENT_STREAM = 'KINDLING_EVENTS';
export const DEAD_STREAM = 'KINDLING_DEAD';
const CONNECT_MS = 2_000;
const RETRY_MS = 500;
/** A second silence of this length is a dead connection (a cut cable closes no socket). */
const PING_MS = 5_000;

/** What one established connection offers; `gone` is aborted when it is lost. */
export interface Link {
  readonly connection: NatsConnection;
  readonly js: JetStreamClient;
  readonly jsm: JetStreamManager;
  readonly gone: AbortSignal;
}

interface State {
  readonly link: Link;
  readonly lost: AbortController;
  /** Set up our streams, once for each connection. */
  streams: Promise<void> | undefined;
}

/** Keeps a connection to NATS for as long as it lives: from before the first success, over every loss, for ever. */
export class NatsLink implements AsyncDisposable {
  readonly options: NatsOptions;
  readonly #stop = new AbortController();
  readonly #waiting = new Set<() => void>();
  readonly #callbacks = new Set<(link: Link) => void>();
  readonly #loop: Promise<void>;
  #state: State | undefined;
  /** Why the last attempt to connect failed. */
  #refused = false;

  constructor(options: NatsOptions) {
    this.options = options;
    this.#loop = this.#keep();
  }

  connected(): boolean {
    return this.#state !== undefined;
  }

  current(): Link | undefined {
    return this.#state?.link;
  }

  get closed(): AbortSignal {
    return this.#stop.signal;
  }

  /** Calls back, later, for the present connection and for each that follows. */
  onLink(callback: (link: Link) => void): Disposable {
    this.#callbacks.add(callback);
    queueMicrotask(() => {
      if (this.#state && this.#callbacks.has(callback)) callback(this.#state.link);
    });
    return { [Symbol.dispose]: () => void this.#callbacks.delete(callback) };
  }

  /** @throws BusError `unavailable` when there is no connection within `BUS_LIMITS.waitMs` */
  async link(what: string, signal: AbortSignal): Promise<Link> {
    if (signal.aborted) throw cancelled(signal, what);
    if (this.#stop.signal.aborted) throw new BusError('closed', `Cannot ${what}: the bus was closed`);
    if (this.#state) return this.#state.link;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#waiting.add(resolve);
    try {
      await within(promise, this.options.waitMs ?? BUS_LIMITS.waitMs, signal, what);
    } catch (error) {
      if (error instanceof BusError && error.code === 'timeout') throw this.#unavailable(what, error);
      throw error;
    } finally {
      this.#waiting.delete(resolve);
    }
    if (!this.#state) throw this.#unavailable(what);
    return (this.#state as State).link;
  }

  /** As `link`, with our streams there. */
  async streams(what: string, signal: AbortSignal): Promise<Link> {
    const link = await this.link(what, signal);
    const state = this.#state;
    if (state?.link !== link) throw this.#unavailable(what);
    state.streams ??= ensureStreams(link.jsm, this.options.replicas ?? 1).catch((error: unknown) => {
      state.streams = undefined;
      throw toBusError(error, what);
    });
    await within(state.streams, BUS_LIMITS.waitMs, AbortSignal.any([signal, link.gone]), what);
    return link;
  }

  /** The streams may be gone (a server that lost its disk): look again. */
  forgetStreams(): void {
    if (this.#state) this.#state.streams = undefined;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort(new BusError('closed', 'The bus was closed'));
    for (const wake of this.#waiting) wake();
    const state = this.#state;
    if (state)
      await within(state.link.connection.close(), CONNECT_MS, new AbortController().signal, 'close NATS').catch(
        () => {},
      );
    await this.#loop;
  }

  #unavailable(what: string, cause?: unknown): BusError {
    return new BusError(
      'unavailable',
      `Cannot ${what}: no connection to NATS at ${shown(this.options.url)}; ${this.#refused ? 'it refuses our credentials' : 'is it up?'}`,
      { cause },
    );
  }

  async #keep(): Promise<void> {
    const { logger } = this.options;
    let said = false;
    while (!this.#stop.signal.aborted) {
      let connection: NatsConnection;
      try {
        connection = await connect(connectionOptions(this.options));
      } catch (error) {
        this.#refused = isRefusal(error);
        if (!said) logger.warn({ err: error, nats: shown(this.options.url) }, 'NATS cannot be reached; trying on');
        said = true;
        await pause(RETRY_MS + randomInt(RETRY_MS), this.#stop.signal);
        continue;
      }
      said = false;
      this.#refused = false;
      try {
        await this.#attend(connection);
      } catch (error) {
        logger.warn({ err: error }, 'the connection to NATS failed');
      }
      this.#lose();
      if (!connection.isClosed()) await connection.close();
    }
  }

  /** Until the client gives up on the connection (it reconnects by itself for ever, except when it is refused). */
  async #attend(connection: NatsConnection): Promise<void> {
    if (this.#stop.signal.aborted) return;
    await this.#establish(connection);
    // While it is away the client would try for ever, and know nothing of our end.
    const close = (): void => void connection.close();
    this.#stop.signal.addEventListener('abort', close, { once: true });
    // Not waited for: the client's status iterator does not end with the connection.
    this.#watch(connection).catch((error: unknown) => {
      this.options.logger.warn({ err: error }, 'cannot follow the connection to NATS');
    });
    await connection.closed();
    this.#stop.signal.removeEventListener('abort', close);
  }

  async #watch(connection: NatsConnection): Promise<void> {
    for await (const status of connection.status()) {
      if (connection.isClosed()) return;
      if (status.type === 'disconnect') {
        this.options.logger.warn('lost the connection to NATS');
        this.#lose();
      } else if (status.type === 'reconnect') {
        this.options.logger.info('connected to NATS again');
        await this.#establish(connection);
      }
    }
  }

  async #establish(connection: NatsConnection): Promise<void> {
    const lost = new AbortController();
    const js = connection.jetstream({ timeout: BUS_LIMITS.waitMs });
    // No check that JetStream is there: a server that is just starting says no, and the calls say it well enough.
    const jsm = await connection.jetstreamManager({ timeout: BUS_LIMITS.waitMs, checkAPI: false });
    const link = { connection, js, jsm, gone: lost.signal };
    this.#state = { link, lost, streams: undefined };
    for (const wake of this.#waiting) wake();
    for (const callback of this.#callbacks) callback(link);
  }

  #lose(): void {
    const state = this.#state;
    this.#state = undefined;
    state?.lost.abort(new BusError('unavailable', 'The connection to NATS was lost'));
  }
}

function connectionOptions(options: NatsOptions): ConnectionOptions {
  const servers = options.url.split(',').map((text) => new URL(text.trim()));
  const first = servers[0];
  return {
    servers: servers.map((url) => `${url.hostname}:${url.port || '4222'}`),
    ...(first?.username && first.password
      ? { user: decodeURIComponent(first.username), pass: decodeURIComponent(first.password) }
      : {}),
    ...(first?.username && !first.password ? { token: decodeURIComponent(first.username) } : {}),
    ...(first?.protocol === 'tls:' ? { tls: {} } : {}),
    ...(options.credentials ? { authenticator: credsAuthenticator(options.credentials) } : {}),
    name: options.clientName,
    timeout: CONNECT_MS,
    maxReconnectAttempts: -1,
    reconnectTimeWait: RETRY_MS,
    reconnectJitter: RETRY_MS,
    pingInterval: PING_MS,
    maxPingOut: 2,
  };
}

function isRefusal(error: unknown): boolean {
  return error instanceof Error && 'code' in error && String(error.code).startsWith('AUTH');
}

/** Without user and password. */
function shown(urls: string): string {
  return urls.replaceAll(/\/\/[^@,/]*@/g, '//');
}

async function ensureStreams(jsm: JetStreamManager, replicas: number): Promise<void> {
  await ensureStream(jsm, {
    name: EVENT_STREAM,
    subjects: ['kindling.events.>'],
    retention: RetentionPolicy.Limits,
    storage: StorageType.File,
    discard: DiscardPolicy.Old,
    max_age: BUS_LIMITS.eventAgeMs * 1e6,
    max_bytes: BUS_LIMITS.eventBytes,
    duplicate_window: BUS_LIMITS.dedupeMs * 1e6,
    num_replicas: replicas,
  });
  await ensureStream(jsm, {
    name: DEAD_STREAM,
    subjects: ['kindling.dead.>'],
    retention: RetentionPolicy.Limits,
    storage: StorageType.File,
    discard: DiscardPolicy.Old,
    max_msgs: BUS_LIMITS.deadLetters,
    max_bytes: BUS_LIMITS.eventBytes,
    num_replicas: replicas,
  });
}

type StreamConfig = Parameters<JetStreamManager['streams']['add']>[0] & { readonly name: string };

async function ensureStream(jsm: JetStreamManager, config: StreamConfig): Promise<void> {
  try {
    // Whoever runs the servers may have changed its bounds: a stream that is there is taken as it is.
    await jsm.streams.info(config.name);
  } catch (error) {
    if (!isNotFound(error)) throw error;
    await jsm.streams.add(config);
  }
}

export function isNotFound(error: unknown): boolean {
  return error instanceof Error && 'code' in error && String(error.code) === '404';
}

/** 503: nobody listens. With JetStream: no such stream or consumer, or it is not up yet. */
export function isNoResponder(error: unknown): boolean {
  return error instanceof Error && 'code' in error && String(error.code) === '503';
}

export function toBusError(error: unknown, what: string): BusError {
  if (error instanceof BusError) return error;
  const text = error instanceof Error ? error.message : String(error);
  const code = error instanceof Error && 'code' in error ? String(error.code) : '';
  if (code === 'TIMEOUT')
    return new BusError('timeout', `Cannot ${what}: NATS did not answer in time`, { cause: error });
  if (code === 'MAX_PAYLOAD_EXCEEDED')
    return new BusError('too-large', `Cannot ${what}: more than the NATS server takes`, { cause: error });
  return new BusError('unavailable', `Cannot ${what}: NATS says ${text || code}`, { cause: error });
}
