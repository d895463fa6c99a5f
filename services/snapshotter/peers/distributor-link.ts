import type { KeyObject } from 'node:crypto';
import { BusError, type Bus } from '#shared/bus/bus.ts';
import type { Digest } from '#shared/digest/digest.ts';
import { publicKeyFromText } from '#shared/distribution/capability.ts';
import {
  decodeMessage,
  DISTRIBUTION_VERSION,
  encodeMessage,
  helloReply,
  joinReply,
  leaseMessage,
  locateReply,
  SUBJECTS,
  type JoinReply,
  type JoinRequest,
  type LocateReply,
  type LocateRequest,
  type NodeFigures,
  type NodeRecord,
  type UpdateMessage,
} from '#shared/distribution/messages.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import { askAgain } from './ask-again.ts';
import type { PeerMetrics } from './peer-metrics.ts';
import { ANSWER_PACE, TransferPace } from './transfer-pace.ts';

type Unversioned<T> = T extends unknown ? Omit<T, 'version'> : never;

const HELLO_TIMEOUT_MS = 2_500;
/** Admission may have to ask a registry. A reader does not wait for it so long. */
const JOIN_TIMEOUT_MS = 4_000;
const LOCATE_TIMEOUT_MS = 1_000;
/** A distributor that does not answer is asked this often whether it is back; meanwhile nothing else waits for it. */
const DOWN_HELLO_MS = 1_000;
/** Distributors that are asked the same, one after the other: of several one may stand still, and gets its share of all that is asked. */
const ASKS = 3;
/** How long the first fetch after our start waits for the first hello. */
const FIRST_HELLO_MS = 750;

/**
 * The distributor as a node sees it. It counts as down from when a request fails, or when it is late and does not answer a hello either,
 * until a hello has been answered again.
 */
export class DistributorLink implements AsyncDisposable {
  readonly record: NodeRecord;
  readonly #bus: Bus;
  readonly #logger: Logger;
  readonly #metrics: PeerMetrics;
  readonly #figures: () => Promise<NodeFigures>;
  readonly #stopping = new AbortController();
  readonly #closing = new AsyncDisposableStack();
  readonly #epochListeners = new Set<() => void>();
  /** How long each kind of answer takes. */
  readonly #paces = new Map<string, TransferPace>();
  readonly #leaseListeners = new Map<Digest, (spans: readonly number[]) => void>();
  #up = false;
  #epoch: string | undefined;
  #key: KeyObject | undefined;
  #keyText: string | undefined;
  #timer: NodeJS.Timeout | undefined;
  #greeting: Promise<void> | undefined;
  #first: Promise<void>;

  constructor(options: {
    readonly bus: Bus;
    readonly record: NodeRecord;
    readonly logger: Logger;
    readonly metrics: PeerMetrics;
    /** What this node has fetched and given. */
    readonly figures: () => Promise<NodeFigures>;
  }) {
    this.#bus = options.bus;
    this.record = options.record;
    this.#logger = options.logger;
    this.#metrics = options.metrics;
    this.#figures = options.figures;
    const { messages } = options.bus;
    this.#closing.use(
      messages.subscribe(SUBJECTS.lease(this.record.node), undefined, (bytes) => {
        const { layer, spans } = decodeMessage(leaseMessage, bytes, 'a lease');
        this.#leaseListeners.get(layer)?.(spans);
      }),
    );
    this.#closing.use(messages.subscribe(SUBJECTS.forgotten, undefined, () => this.#greetSoon(0)));
    this.#first = new Promise((resolve) => {
      this.#closing.use(this.#bus.onConnected(() => void this.#greet().finally(resolve)));
      setTimeout(resolve, FIRST_HELLO_MS).unref();
    });
  }

  /** False: nothing waits for it, whoever fetches goes to the registry and to the peers it knows. */
  get up(): boolean {
    return this.#up && this.#bus.connected();
  }

  /** What capabilities are checked with; undefined until the first hello. */
  get publicKey(): KeyObject | undefined {
    return this.#key;
  }

  /** Resolves when it is known whether there is a distributor; within a bound. */
  async settled(): Promise<void> {
    await this.#first;
  }

  /** The directory is a new one: what we hold must be said again. */
  onEpoch(listener: () => void): () => void {
    this.#epochListeners.add(listener);
    return () => this.#epochListeners.delete(listener);
  }

  /** Spans of the layer that we are told to read from the registry. One listener for a layer. */
  onLease(layer: Digest, listener: (spans: readonly number[]) => void): () => void {
    this.#leaseListeners.set(layer, listener);
    return () => {
      if (this.#leaseListeners.get(layer) === listener) this.#leaseListeners.delete(layer);
    };
  }

  /** @throws BusError or MessageError; the link may be down then */
  async join(request: Omit<JoinRequest, 'version' | 'record'>, signal: AbortSignal): Promise<JoinReply> {
    const message = { version: DISTRIBUTION_VERSION, record: this.record, ...request };
    const bytes = await this.#ask('join', SUBJECTS.join, message, JOIN_TIMEOUT_MS, signal);
    return decodeMessage(joinReply, bytes, "the distributor's answer to a join");
  }

  /** Where spans are. @throws BusError or MessageError; the link may be down then */
  async locate(request: Omit<LocateRequest, 'version' | 'node'>, signal: AbortSignal): Promise<LocateReply> {
    const message = { version: DISTRIBUTION_VERSION, node: this.record.node, ...request };
    const bytes = await this.#ask('locate', SUBJECTS.locate, message, LOCATE_TIMEOUT_MS, signal);
    return decodeMessage(locateReply, bytes, "the distributor's answer to a locate");
  }

  send(update: Unversioned<UpdateMessage>): void {
    this.#bus.messages.send(SUBJECTS.update, encodeMessage({ version: DISTRIBUTION_VERSION, ...update }));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort(new Error('The agent is shutting down'));
    clearTimeout(this.#timer);
    this.send({ kind: 'gone', node: this.record.node });
    await this.#greeting;
    await this.#closing.disposeAsync();
  }

  async #ask(
    request: string,
    subject: string,
    message: object,
    timeoutMs: number,
    signal: AbortSignal,
  ): Promise<Uint8Array> {
    try {
      const either = AbortSignal.any([signal, this.#stopping.signal]);
      const bytes = encodeMessage(message);
      const pace = this.#paceOf(request);
      const deadlineMs = performance.now() + timeoutMs;
      const ask = async (until: AbortSignal) =>
        await this.#bus.messages.request(subject, bytes, Math.max(1, deadlineMs - performance.now()), until);
      const { answer, tookMs, asks } = await askAgain(ask, { asks: ASKS, lateMs: pace.lateMs }, either);
      pace.took(tookMs);
      if (asks > 1) this.#metrics.distributor.inc({ request, outcome: 'asked-again' }, asks - 1);
      this.#metrics.distributor.inc({ request, outcome: 'answered' });
      return answer;
    } catch (error) {
      if (!signal.aborted) {
        this.#metrics.distributor.inc({ request, outcome: 'failed' });
        // On a busy machine an answer may be late, and whoever reads by itself in the meantime reads what others read as well.
        if (error instanceof BusError && error.code === 'timeout' && request !== 'hello') this.#greetSoon(0);
        else this.#down(error);
      }
      throw error;
    }
  }

  #paceOf(request: string): TransferPace {
    const pace = this.#paces.get(request) ?? new TransferPace(ANSWER_PACE);
    this.#paces.set(request, pace);
    return pace;
  }

  #down(error: unknown): void {
    if (this.#stopping.signal.aborted) return;
    if (this.#up) this.#logger.warn({ err: error }, 'The distributor does not answer: the registry is asked instead');
    this.#up = false;
    this.#metrics.up.set(0);
    this.#greetSoon(DOWN_HELLO_MS);
  }

  #greetSoon(ms: number): void {
    clearTimeout(this.#timer);
    if (this.#stopping.signal.aborted) return;
    this.#timer = setTimeout(() => void this.#greet(), ms).unref();
  }

  async #greet(): Promise<void> {
    this.#greeting ??= this.#greetOnce().finally(() => {
      this.#greeting = undefined;
    });
    await this.#greeting;
  }

  async #greetOnce(): Promise<void> {
    clearTimeout(this.#timer);
    try {
      const { signal } = this.#stopping;
      const message = { version: DISTRIBUTION_VERSION, record: this.record, figures: await this.#figures() };
      const bytes = await this.#ask('hello', SUBJECTS.hello, message, HELLO_TIMEOUT_MS, signal);
      const reply = decodeMessage(helloReply, bytes, "the distributor's hello");
      if (reply.publicKey !== this.#keyText) {
        this.#key = publicKeyFromText(reply.publicKey);
        this.#keyText = reply.publicKey;
      }
      if (!this.#up) this.#logger.info('The distributor answers');
      const returned = !this.#up;
      this.#up = true;
      this.#metrics.up.set(1);
      // Also after it was away: updates sent meanwhile are lost.
      if (reply.epoch !== this.#epoch || returned) {
        this.#epoch = reply.epoch;
        for (const listener of this.#epochListeners) listener();
      }
      this.#greetSoon(reply.renewMs * (0.8 + Math.random() * 0.2));
    } catch (error) {
      this.#down(error);
    }
  }
}
