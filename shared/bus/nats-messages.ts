import { headers, type Msg, type NatsConnection, type Subscription as NatsSubscription } from 'nats';
import { BusError, type Messages, type Subscription } from './bus.ts';
import { within } from './deadline.ts';
import { checkSize, noResponder, remote } from './local-messages.ts';
import { isNoResponder, toBusError, type NatsLink } from './nats-link.ts';
import { checkName, checkPattern, checkSubject } from './subject.ts';

const ERROR = 'Kindling-Error';

export class NatsMessages implements Messages {
  readonly #link: NatsLink;

  constructor(link: NatsLink) {
    this.#link = link;
  }

  async request(subject: string, payload: Uint8Array, timeoutMs: number, signal: AbortSignal): Promise<Uint8Array> {
    checkSubject(subject);
    checkSize(subject, payload);
    const what = `ask ${subject}`;
    const link = this.#link.current();
    // No wait: whoever asks has another way (the registry) and takes it now.
    if (!link) throw new BusError('unavailable', `Cannot ${what}: no connection to NATS`);
    let answer: Msg;
    try {
      const asked = link.connection.request(subject, payload, { timeout: timeoutMs });
      answer = await within(asked, timeoutMs, AbortSignal.any([signal, link.gone]), what);
    } catch (error) {
      if (isNoResponder(error)) throw noResponder(subject);
      if (link.gone.aborted && !signal.aborted) {
        throw new BusError('unavailable', `Cannot ${what}: the connection to NATS was lost`, { cause: error });
      }
      throw toBusError(error, what);
    }
    const failure = answer.headers?.get(ERROR);
    if (failure) throw remote(subject, failure);
    return answer.data;
  }

  respond(
    subject: string,
    queue: string,
    handler: (payload: Uint8Array, subject: string) => Promise<Uint8Array>,
  ): Subscription {
    checkPattern(subject);
    checkName(queue, 'the name of a queue');
    const running = new Set<Promise<void>>();
    const answer = async (message: Msg) => {
      try {
        message.respond(await handler(message.data, message.subject));
      } catch (error) {
        const failed = headers();
        const text = error instanceof Error ? error.message : String(error);
        failed.set(ERROR, text.replaceAll(/[^\x20-\x7e]+/g, ' ').slice(0, 500) || 'failed');
        message.respond(new Uint8Array(), { headers: failed });
      }
    };
    return this.#attach(subject, queue, running, (message) => {
      // The answer's own failure: the connection is gone, the asker's wait ends by itself.
      const work = answer(message)
        .catch(() => {})
        .finally(() => running.delete(work));
      running.add(work);
    });
  }

  send(subject: string, payload: Uint8Array): boolean {
    checkSubject(subject);
    checkSize(subject, payload);
    const link = this.#link.current();
    if (!link) return false;
    try {
      link.connection.publish(subject, payload);
      return true;
    } catch {
      return false;
    }
  }

  subscribe(
    subject: string,
    queue: string | undefined,
    handler: (payload: Uint8Array, subject: string) => void,
  ): Subscription {
    checkPattern(subject);
    if (queue !== undefined) checkName(queue, 'the name of a queue');
    return this.#attach(subject, queue, new Set(), (message) => handler(message.data, message.subject));
  }

  /** The client renews a subscription when it reconnects; a connection that it gave up for good needs a new one. */
  #attach(
    subject: string,
    queue: string | undefined,
    running: ReadonlySet<Promise<void>>,
    handler: (message: Msg) => void,
  ): Subscription {
    let attached: { readonly connection: NatsConnection; readonly subscription: NatsSubscription } | undefined;
    const watch = this.#link.onLink(({ connection }) => {
      if (attached?.connection === connection) return;
      const subscription = connection.subscribe(subject, {
        ...(queue === undefined ? {} : { queue }),
        callback: (error, message) => {
          const { logger } = this.#link.options;
          if (error) {
            logger.warn({ err: error, subject }, 'a subscription failed');
            return;
          }
          try {
            handler(message);
          } catch (cause) {
            // The client would stop reading, and say nothing.
            logger.warn({ err: cause, subject: message.subject }, 'a message was dropped');
          }
        },
      });
      attached = { connection, subscription };
    });
    return {
      async [Symbol.asyncDispose]() {
        watch[Symbol.dispose]();
        if (attached && !attached.connection.isClosed()) attached.subscription.unsubscribe();
        await Promise.all(running);
      },
    };
  }
}
