import { BUS_LIMITS, BusError, type Messages, type Subscription } from './bus.ts';
import { within } from './deadline.ts';
import { checkName, checkPattern, checkSubject, matches } from './subject.ts';

interface Listener {
  readonly subject: string;
  readonly queue: string | undefined;
  readonly handler: (payload: Uint8Array, subject: string) => void;
}

interface Responder {
  readonly subject: string;
  readonly handler: (payload: Uint8Array, subject: string) => Promise<Uint8Array>;
}

/** Messages within this process; delivered later in the same thread, never within the sender's call. */
export class LocalMessages implements Messages {
  readonly #listeners = new Set<Listener>();
  readonly #responders = new Set<Responder>();
  #turn = 0;

  async request(subject: string, payload: Uint8Array, timeoutMs: number, signal: AbortSignal): Promise<Uint8Array> {
    checkSubject(subject);
    checkSize(subject, payload);
    const responder = this.#pick([...this.#responders].filter((one) => matches(one.subject, subject)));
    if (!responder) throw noResponder(subject);
    const answer = Promise.resolve()
      .then(() => responder.handler(payload, subject))
      .catch((error: unknown) => {
        throw remote(subject, error instanceof Error ? error.message : String(error), error);
      });
    return await within(answer, timeoutMs, signal, `ask ${subject}`);
  }

  respond(
    subject: string,
    queue: string,
    handler: (payload: Uint8Array, subject: string) => Promise<Uint8Array>,
  ): Subscription {
    checkPattern(subject);
    checkName(queue, 'the name of a queue');
    return added(this.#responders, { subject, handler });
  }

  send(subject: string, payload: Uint8Array): boolean {
    checkSubject(subject);
    checkSize(subject, payload);
    const queues = new Map<string, Listener[]>();
    for (const listener of this.#listeners) {
      if (!matches(listener.subject, subject)) continue;
      if (listener.queue === undefined) deliver(listener, payload, subject);
      else queues.set(listener.queue, [...(queues.get(listener.queue) ?? []), listener]);
    }
    for (const members of queues.values()) {
      const one = this.#pick(members);
      if (one) deliver(one, payload, subject);
    }
    return true;
  }

  subscribe(
    subject: string,
    queue: string | undefined,
    handler: (payload: Uint8Array, subject: string) => void,
  ): Subscription {
    checkPattern(subject);
    if (queue !== undefined) checkName(queue, 'the name of a queue');
    return added(this.#listeners, { subject, queue, handler });
  }

  #pick<T>(all: readonly T[]): T | undefined {
    this.#turn += 1;
    return all[this.#turn % Math.max(1, all.length)];
  }
}

export function checkSize(subject: string, payload: Uint8Array): void {
  if (payload.length <= BUS_LIMITS.payloadBytes) return;
  throw new BusError(
    'too-large',
    `Cannot send to ${subject}: ${payload.length} bytes, at most ${BUS_LIMITS.payloadBytes}`,
  );
}

export function noResponder(subject: string): BusError {
  return new BusError('no-responder', `Cannot ask ${subject}: nobody answers there; is the service that does so up?`);
}

export function remote(subject: string, message: string, cause?: unknown): BusError {
  return new BusError('remote', `Cannot ask ${subject}: ${message}`, { cause });
}

function deliver(listener: Listener, payload: Uint8Array, subject: string): void {
  queueMicrotask(() => {
    try {
      listener.handler(payload, subject);
    } catch (error) {
      process.emitWarning(
        `A message to ${subject} was dropped: ${error instanceof Error ? error.message : String(error)}`,
      );
    }
  });
}

function added<T>(all: Set<T>, one: T): Subscription {
  all.add(one);
  return {
    async [Symbol.asyncDispose]() {
      all.delete(one);
    },
  };
}
