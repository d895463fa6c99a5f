/**
 * What the services say to each other, and the durable state they share. Two implementations, one conformance suite:
 * `NatsBus` for a cluster, `LocalBus` within one process.
 *
 * Every call ends within a bound, also when the other side is gone: it rejects with a `BusError`. Nothing is silently
 * dropped except what is said to be (`Messages.send`).
 */
export interface Bus extends AsyncDisposable {
  readonly events: EventLog;
  readonly messages: Messages;
  readonly objects: ObjectStore;
  readonly claims: Claims;
  connected(): boolean;
  /**
   * Calls back each time the bus is reached (also now, when it already is), so that a node can say again what is only
   * kept in memory elsewhere. Disposing the result ends it.
   */
  onConnected(callback: () => void): Disposable;
}

/** Something delivered to us for as long as it is not disposed. */
export type Subscription = AsyncDisposable;

export interface OutgoingEvent {
  /** `kindling.events.<type>`. */
  readonly subject: string;
  /** Events with the same id within `BUS_LIMITS.dedupeMs` are one event. */
  readonly id: string;
  readonly payload: Uint8Array;
}

export interface Delivery {
  readonly subject: string;
  readonly payload: Uint8Array;
  /** 1 at the first delivery. */
  readonly attempt: number;
  /** Aborted when the consumer is being disposed; what is not finished then is delivered again. */
  readonly signal: AbortSignal;
}

export interface ConsumerOptions {
  /** Consumers of the same name share the events; a name remembers its place, also while nobody consumes. */
  readonly name: string;
  /** Full subject or pattern with `*` and a last `>`. */
  readonly subject: string;
  /** Events handled at the same time by this process. */
  readonly concurrency: number;
  /** Deliveries before an event is put among the dead letters. */
  readonly maxAttempts: number;
  /** A name that nobody consumed for so long is forgotten. */
  readonly inactiveMs: number;
  /** An event whose handler died (with its process) is delivered again after this. */
  readonly ackWaitMs: number;
  /** Pause after the first failed attempt; doubles with each, up to `BUS_LIMITS.retryMs`. */
  readonly retryMs: number;
  /** Where a new name begins: with all events that are still kept, or with those that come from now on. */
  readonly start: 'all' | 'new';
}

export interface DeadLetter {
  /** Names it for `retryDead` and `dropDead`; never used twice. */
  readonly id: string;
  readonly atMs: number;
  readonly consumer: string;
  readonly subject: string;
  readonly reason: string;
  readonly attempts: number;
  readonly payload: Uint8Array;
}

/** Events, kept and delivered at least once to each consumer name. Handlers must be idempotent. */
export interface EventLog {
  /** Resolves once the event is durable. `duplicate`: an event of that id was there already. */
  publish(event: OutgoingEvent, signal: AbortSignal): Promise<{ readonly duplicate: boolean }>;
  /**
   * A handler that resolves has handled the event; one that throws gets it again after a pause, until `maxAttempts`;
   * a `RejectedEvent` goes to the dead letters at once. Attempts are counted before the handler runs, so an event that kills
   * its process also ends there.
   */
  consume(options: ConsumerOptions, handler: (delivery: Delivery) => Promise<void>): Subscription;
  /** The newest `limit`, newest last. */
  deadLetters(limit: number, signal: AbortSignal): Promise<readonly DeadLetter[]>;
  /** Publishes the event of a dead letter anew, to all its consumers, and drops the letter. Resolves to false where there is none. */
  retryDead(id: string, signal: AbortSignal): Promise<boolean>;
  dropDead(id: string, signal: AbortSignal): Promise<boolean>;
}

/** Messages between processes that are up now. */
export interface Messages {
  /** @throws BusError `no-responder`, `timeout`, `remote` (the handler threw; its message is in ours), `unavailable` */
  request(subject: string, payload: Uint8Array, timeoutMs: number, signal: AbortSignal): Promise<Uint8Array>;
  /** One of the responders of a queue answers each request. */
  respond(
    subject: string,
    queue: string,
    handler: (payload: Uint8Array, subject: string) => Promise<Uint8Array>,
  ): Subscription;
  /** Fire and forget: dropped when the bus is not reachable. Returns whether it left. */
  send(subject: string, payload: Uint8Array): boolean;
  /**
   * With a queue each message goes to one of its subscribers, without to all. A message that `handler` throws at is dropped, and
   * said: whatever somebody sends, those that follow arrive.
   */
  subscribe(
    subject: string,
    queue: string | undefined,
    handler: (payload: Uint8Array, subject: string) => void,
  ): Subscription;
}

/**
 * Immutable objects by name (layer indexes). Names: letters, digits, `-`, `_`, `.`. Bounded: when space runs short, those that were
 * put first are dropped. Whoever misses one makes it again.
 */
export interface ObjectStore {
  /** An object of that name that is there already stays as it is. */
  put(name: string, bytes: Uint8Array, signal: AbortSignal): Promise<void>;
  get(name: string, signal: AbortSignal): Promise<Uint8Array | undefined>;
  has(name: string, signal: AbortSignal): Promise<boolean>;
  /** For what turned out to be damaged. */
  remove(name: string, signal: AbortSignal): Promise<void>;
}

/** A name held by one process at a time. Renewed by itself until disposed. */
export interface Claim extends AsyncDisposable {
  /** Aborted when the claim could not be renewed in time: someone else may hold it now. */
  readonly lost: AbortSignal;
}

/** Advisory: they save double work, they do not guard data. A dead holder's claim ends by itself within seconds. */
export interface Claims {
  /** undefined = someone else holds it. */
  claim(name: string, signal: AbortSignal): Promise<Claim | undefined>;
}

export type BusErrorCode =
  | 'unavailable'
  | 'timeout'
  | 'no-responder'
  | 'remote'
  | 'too-large'
  | 'invalid'
  | 'cancelled'
  | 'closed';

export class BusError extends Error {
  override readonly name = 'BusError';
  readonly code: BusErrorCode;
  readonly retryable: boolean;
  constructor(code: BusErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
    this.retryable = code === 'unavailable' || code === 'timeout' || code === 'no-responder';
  }
}

/** Thrown by a handler: this event can never be handled; another attempt is useless. */
export class RejectedEvent extends Error {
  override readonly name = 'RejectedEvent';
  readonly code = 'rejected';
}

export const BUS_LIMITS = {
  /** Bytes of an event or message; NATS's default is 1 MiB with headers. */
  payloadBytes: 768 * 1024,
  /** Bytes of an object: a layer index of a huge gzip layer is some 10 MiB. */
  objectBytes: 256 * 1024 * 1024,
  /** Bytes of all objects, unless told otherwise. */
  allObjectBytes: 1024 ** 3,
  /** When objects have to make room, so many are dropped that this share of the space is used: it then lasts for a while. */
  objectRoom: 0.75,
  /** Events of one id within this are one event; registries retry for minutes. */
  dedupeMs: 60 * 60 * 1000,
  /** Events are kept this long; a node that was away longer has missed them. */
  eventAgeMs: 7 * 24 * 60 * 60 * 1000,
  /** Bytes of all kept events; the oldest go first. */
  eventBytes: 256 * 1024 * 1024,
  /** Dead letters kept; the oldest go first. */
  deadLetters: 10_000,
  /** Longest pause between two attempts. */
  retryMs: 5 * 60 * 1000,
  /** How long a call waits for a bus that is not reachable before it fails. */
  waitMs: 5_000,
  /** Events a consumer handles at a time. */
  concurrency: 64,
} as const;

/** Pause before the next attempt; `attempt` is the one that failed, 1 = the first. */
export function retryPauseMs(options: Pick<ConsumerOptions, 'retryMs'>, attempt: number): number {
  return Math.min(BUS_LIMITS.retryMs, options.retryMs * 2 ** Math.min(attempt - 1, 20));
}
