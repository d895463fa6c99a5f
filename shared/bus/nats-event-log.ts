import { AckPolicy, DeliverPolicy, type ConsumerConfig, type JsMsg } from 'nats';
import {
  BUS_LIMITS,
  BusError,
  RejectedEvent,
  retryPauseMs,
  type ConsumerOptions,
  type DeadLetter,
  type Delivery,
  type EventLog,
  type OutgoingEvent,
  type Subscription,
} from './bus.ts';
import { pause, within } from './deadline.ts';
import { reasonOf, retryId } from './local-event-log.ts';
import { buryInStream, NatsDeadLetters } from './nats-dead-letters.ts';
import { EVENT_STREAM, isNoResponder, isNotFound, type Link, type NatsLink } from './nats-link.ts';
import { publishToStream } from './nats-publish.ts';
import { checkName, checkPattern, checkSubject } from './subject.ts';
import { checkSize } from './local-messages.ts';

/** How long one pull waits at the server; idle consumers cost one request each time. */
const PULL_MS = 20_000;
/** After the server's own end of a pull: then its answer was lost. */
const PULL_SLACK_MS = 2_000;
const RETRY_MS = 250;
const MAX_RETRY_MS = 5_000;
/** Events delivered to a consumer name and not yet acknowledged, over all processes. */
const MAX_UNACKED = 4096;

export class NatsEventLog implements EventLog, AsyncDisposable {
  readonly #link: NatsLink;
  readonly #dead: NatsDeadLetters;
  readonly #consumers = new Set<NatsConsumer>();

  constructor(link: NatsLink) {
    this.#link = link;
    this.#dead = new NatsDeadLetters(link);
  }

  async publish(event: OutgoingEvent, signal: AbortSignal): Promise<{ readonly duplicate: boolean }> {
    checkSubject(event.subject);
    checkSize(event.subject, event.payload);
    return await publishToStream(this.#link, event, signal);
  }

  consume(options: ConsumerOptions, handler: (delivery: Delivery) => Promise<void>): Subscription {
    checkName(options.name, 'the name of a consumer');
    checkPattern(options.subject);
    const consumer = new NatsConsumer(this.#link, options, handler, () => this.#consumers.delete(consumer));
    this.#consumers.add(consumer);
    return consumer;
  }

  async deadLetters(limit: number, signal: AbortSignal): Promise<readonly DeadLetter[]> {
    return await this.#dead.newest(limit, signal);
  }

  async retryDead(id: string, signal: AbortSignal): Promise<boolean> {
    const letter = await this.#dead.find(id, signal);
    if (letter === undefined) return false;
    const event = { subject: letter.subject, id: retryId(letter), payload: letter.payload };
    await publishToStream(this.#link, event, signal);
    return await this.#dead.drop(id, signal);
  }

  async dropDead(id: string, signal: AbortSignal): Promise<boolean> {
    return await this.#dead.drop(id, signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#consumers].map((consumer) => consumer[Symbol.asyncDispose]()));
  }
}

/** Pulls events one by one, as many at a time as its concurrency: what it has not begun stays with the others. */
class NatsConsumer implements AsyncDisposable {
  readonly #link: NatsLink;
  readonly #options: ConsumerOptions;
  readonly #handler: (delivery: Delivery) => Promise<void>;
  readonly #onDispose: () => void;
  readonly #stop = new AbortController();
  readonly #loops: readonly Promise<void>[];
  /** The connection on which the consumer is known to exist. */
  #known: { readonly link: Link; readonly ensured: Promise<void> } | undefined;

  constructor(
    link: NatsLink,
    options: ConsumerOptions,
    handler: (delivery: Delivery) => Promise<void>,
    onDispose: () => void,
  ) {
    this.#link = link;
    this.#options = options;
    this.#handler = handler;
    this.#onDispose = onDispose;
    const loops = Math.max(1, Math.min(options.concurrency, BUS_LIMITS.concurrency));
    this.#loops = Array.from({ length: loops }, () => this.#loop());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort(new BusError('closed', `The consumer ${this.#options.name} was closed`));
    await Promise.all(this.#loops);
    this.#onDispose();
  }

  async #loop(): Promise<void> {
    const { signal } = this.#stop;
    let failures = 0;
    while (!signal.aborted && !this.#link.closed.aborted) {
      try {
        const message = await this.#next();
        failures = 0;
        if (message) await this.#handle(message);
      } catch (error) {
        if (signal.aborted) return;
        // A connection that was lost comes back by itself; what is left is worth a line.
        if (this.#link.connected() && failures === 3) {
          this.#link.options.logger.warn({ err: error, consumer: this.#options.name }, 'cannot take events; trying on');
        }
        failures += 1;
        await pause(Math.min(MAX_RETRY_MS, RETRY_MS * 2 ** Math.min(failures, 10)), signal);
      }
    }
  }

  /** undefined = there was none. */
  async #next(): Promise<JsMsg | undefined> {
    const { signal } = this.#stop;
    const what = `take events for ${this.#options.name}`;
    const link = await this.#link.streams(what, signal);
    await within(this.#ensure(link), 2 * BUS_LIMITS.waitMs, AbortSignal.any([signal, link.gone]), what);
    // Its own client: the request must outlive the wait at the server.
    const js = link.connection.jetstream({ timeout: PULL_MS + PULL_SLACK_MS });
    const pulled = js.pull(EVENT_STREAM, this.#options.name, PULL_MS);
    try {
      return await within(pulled, PULL_MS + 2 * PULL_SLACK_MS, AbortSignal.any([signal, link.gone]), what);
    } catch (error) {
      // An event that arrives for a pull we gave up goes back at once, with its attempt counted.
      pulled.then(
        (message) => message.nak(),
        () => {},
      );
      const code = error instanceof Error && 'code' in error ? String(error.code) : '';
      if (code === '404' || code === '408' || code === 'timeout') return undefined;
      if (link.gone.aborted) return undefined;
      this.#known = undefined;
      if (isNoResponder(error)) this.#link.forgetStreams();
      throw error;
    }
  }

  async #ensure(link: Link): Promise<void> {
    if (this.#known?.link !== link) {
      const ensured = this.#create(link);
      ensured.catch(() => {
        if (this.#known?.ensured === ensured) this.#known = undefined;
      });
      this.#known = { link, ensured };
    }
    await this.#known.ensured;
  }

  async #create(link: Link): Promise<void> {
    const { name, subject, start, ackWaitMs, inactiveMs } = this.#options;
    const wanted: Partial<ConsumerConfig> = {
      durable_name: name,
      filter_subject: subject,
      ack_policy: AckPolicy.Explicit,
      deliver_policy: start === 'all' ? DeliverPolicy.All : DeliverPolicy.New,
      ack_wait: ackWaitMs * 1e6,
      inactive_threshold: inactiveMs * 1e6,
      // We count ourselves: the server would drop what passed its bound without telling anyone.
      max_deliver: -1,
      max_ack_pending: MAX_UNACKED,
    };
    try {
      const { config } = await link.jsm.consumers.info(EVENT_STREAM, name);
      if (
        config.ack_wait === wanted.ack_wait &&
        config.inactive_threshold === wanted.inactive_threshold &&
        config.filter_subject === subject
      )
        return;
      await link.jsm.consumers.update(EVENT_STREAM, name, {
        ...config,
        filter_subject: subject,
        ack_wait: ackWaitMs * 1e6,
        inactive_threshold: inactiveMs * 1e6,
      });
    } catch (error) {
      if (!isNotFound(error)) throw error;
      await link.jsm.consumers.add(EVENT_STREAM, wanted);
    }
  }

  async #handle(message: JsMsg): Promise<void> {
    const attempt = message.info.deliveryCount;
    const { maxAttempts, ackWaitMs } = this.#options;
    if (attempt > maxAttempts) {
      await this.#bury(message, attempt - 1, 'Every attempt ended with the process that made it');
      return;
    }
    const working = setInterval(() => attemptTo(() => message.working()), ackWaitMs / 3);
    try {
      await this.#handler({
        subject: message.subject,
        payload: message.data,
        attempt,
        signal: this.#stop.signal,
      });
      // An acknowledgement that is lost means one more delivery: handlers are idempotent.
      await within(message.ackAck(), BUS_LIMITS.waitMs, this.#link.closed, 'acknowledge an event').catch(() => false);
    } catch (error) {
      if (this.#stop.signal.aborted) attemptTo(() => message.nak());
      else if (error instanceof RejectedEvent || attempt >= maxAttempts)
        await this.#bury(message, attempt, reasonOf(error));
      else attemptTo(() => message.nak(retryPauseMs(this.#options, attempt)));
    } finally {
      clearInterval(working);
    }
  }

  /** Where NATS cannot take the letter now, the event comes again and is buried then. */
  async #bury(message: JsMsg, attempts: number, reason: string): Promise<void> {
    const { name } = this.#options;
    this.#link.options.logger.error(
      { consumer: name, subject: message.subject, attempts, reason },
      'put an event among the dead letters',
    );
    const id = `${name}-${message.seq}-${message.info.timestampNanos}`;
    const { subject, data: payload } = message;
    try {
      await buryInStream(this.#link, id, { consumer: name, subject, reason, attempts, payload });
    } catch {
      return;
    }
    attemptTo(() => message.term());
  }
}

/** The acknowledging calls of the client throw on a connection that is closed; the event then simply comes again. */
function attemptTo(call: () => void): void {
  try {
    call();
  } catch {
    // As said above.
  }
}
