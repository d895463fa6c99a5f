import type { StoredMsg } from 'nats';
import { BUS_LIMITS, type DeadLetter } from './bus.ts';
import { within } from './deadline.ts';
import { DEAD_STREAM, isNotFound, toBusError, type Link, type NatsLink } from './nats-link.ts';
import { publishToStream } from './nats-publish.ts';

const PREFIX = 'kindling.dead.';
const SUBJECT = 'Kindling-Subject';
const REASON = 'Kindling-Reason';
const ATTEMPTS = 'Kindling-Attempts';
/** Of a sequence number of a stream. */
const ID = /^[1-9]\d{0,14}$/;

/** The dead letters of a cluster, in a stream of their own; a letter's id is its number there. */
export class NatsDeadLetters {
  readonly #link: NatsLink;

  constructor(link: NatsLink) {
    this.#link = link;
  }

  async newest(limit: number, signal: AbortSignal): Promise<readonly DeadLetter[]> {
    return await this.#with('read the dead letters', signal, async (link, bounded) => {
      const { state } = await bounded(link.jsm.streams.info(DEAD_STREAM));
      const letters: DeadLetter[] = [];
      // From the end: numbers of letters that were dropped are left out by the server one by one.
      for (let seq = state.last_seq; seq >= Math.max(1, state.first_seq) && letters.length < limit; seq--) {
        const stored = await bounded(lookUp(link, seq));
        if (stored) letters.push(letterOf(stored));
      }
      return letters.toReversed();
    });
  }

  async find(id: string, signal: AbortSignal): Promise<DeadLetter | undefined> {
    if (!ID.test(id)) return undefined;
    return await this.#with(`read the dead letter ${id}`, signal, async (link, bounded) => {
      const stored = await bounded(lookUp(link, Number(id)));
      return stored && letterOf(stored);
    });
  }

  async drop(id: string, signal: AbortSignal): Promise<boolean> {
    if (!ID.test(id)) return false;
    return await this.#with(`drop the dead letter ${id}`, signal, async (link, bounded) => {
      if (!(await bounded(lookUp(link, Number(id))))) return false;
      return await bounded(link.jsm.streams.deleteMessage(DEAD_STREAM, Number(id)));
    });
  }

  async #with<T>(
    what: string,
    signal: AbortSignal,
    work: (link: Link, bounded: <A>(answer: Promise<A>) => Promise<A>) => Promise<T>,
  ): Promise<T> {
    const link = await this.#link.streams(what, signal);
    const ends = AbortSignal.any([signal, link.gone]);
    try {
      return await work(link, async (answer) => await within(answer, BUS_LIMITS.waitMs, ends, what));
    } catch (error) {
      throw toBusError(error, what);
    }
  }
}

/** `id`: the same each time this event is put away for this consumer. @throws BusError */
export async function buryInStream(link: NatsLink, id: string, letter: Omit<DeadLetter, 'id' | 'atMs'>): Promise<void> {
  const { consumer, subject, reason, attempts, payload } = letter;
  const notes = { [SUBJECT]: subject, [REASON]: reason, [ATTEMPTS]: String(attempts) };
  await publishToStream(link, { subject: `${PREFIX}${consumer}`, id, payload, notes }, link.closed);
}

async function lookUp(link: Link, seq: number): Promise<StoredMsg | undefined> {
  return await link.jsm.streams.getMessage(DEAD_STREAM, { seq }).catch((error: unknown) => {
    if (isNotFound(error)) return undefined;
    throw error;
  });
}

function letterOf(stored: StoredMsg): DeadLetter {
  return {
    id: String(stored.seq),
    atMs: stored.time.getTime(),
    consumer: stored.subject.slice(PREFIX.length),
    subject: stored.header.get(SUBJECT),
    reason: stored.header.get(REASON),
    attempts: Number(stored.header.get(ATTEMPTS)),
    payload: stored.data,
  };
}
