import { DatabaseSync } from 'node:sqlite';
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
import { cancelled } from './deadline.ts';
import { LocalDeadLetters } from './local-dead-letters.ts';
import { checkName, checkPattern, checkSubject, matches } from './subject.ts';

/** Old events are looked for each time this many were published. */
const PRUNE_EVERY = 1000;
/** Events looked at in one go when a consumer searches for its next one. */
const SCAN = 256;

const SCHEMA = `
CREATE TABLE IF NOT EXISTS events (seq INTEGER PRIMARY KEY AUTOINCREMENT, subject TEXT NOT NULL, id TEXT NOT NULL,
  payload BLOB NOT NULL, at INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS events_by_id ON events (id);
CREATE TABLE IF NOT EXISTS consumers (name TEXT PRIMARY KEY, next INTEGER NOT NULL, used INTEGER NOT NULL,
  inactive INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS pending (consumer TEXT NOT NULL, seq INTEGER NOT NULL, attempts INTEGER NOT NULL,
  due INTEGER NOT NULL, PRIMARY KEY (consumer, seq));
`;

interface Taken {
  readonly seq: number;
  readonly subject: string;
  readonly payload: Uint8Array;
  readonly attempt: number;
}

/** Events of one process, in a SQLite file (`:memory:` = gone with the process). */
export class LocalEventLog implements EventLog, AsyncDisposable {
  readonly #db: DatabaseSync;
  readonly #now: () => number;
  readonly #dead: LocalDeadLetters;
  readonly #consumers = new Set<LocalConsumer>();
  /** By consumer name: numbers of events whose handler is running. */
  readonly #running = new Map<string, Set<number>>();
  #published = 0;

  constructor(file: string, now: () => number = Date.now) {
    this.#db = new DatabaseSync(file);
    this.#now = now;
    // EXCLUSIVE: no shared-memory file, which would be a SIGBUS on a full disk.
    this.#db.exec('PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;');
    this.#db.exec(SCHEMA);
    this.#dead = new LocalDeadLetters(this.#db);
    // Whoever handled these died with the process before.
    this.#db.prepare('UPDATE pending SET due = 0').run();
    this.#prune();
  }

  async publish(event: OutgoingEvent, signal: AbortSignal): Promise<{ readonly duplicate: boolean }> {
    checkSubject(event.subject);
    if (signal.aborted) throw cancelled(signal, `publish to ${event.subject}`);
    if (event.payload.length > BUS_LIMITS.payloadBytes) {
      throw new BusError(
        'too-large',
        `Cannot publish to ${event.subject}: ${event.payload.length} bytes, at most ${BUS_LIMITS.payloadBytes}`,
      );
    }
    const now = this.#now();
    const known = this.#db
      .prepare('SELECT 1 FROM events WHERE id = ? AND at > ?')
      .get(event.id, now - BUS_LIMITS.dedupeMs);
    if (known) return { duplicate: true };
    this.#db
      .prepare('INSERT INTO events (subject, id, payload, at) VALUES (?, ?, ?, ?)')
      .run(event.subject, event.id, event.payload, now);
    this.#published += 1;
    if (this.#published % PRUNE_EVERY === 0) this.#prune();
    for (const consumer of this.#consumers) consumer.wake();
    return { duplicate: false };
  }

  consume(options: ConsumerOptions, handler: (delivery: Delivery) => Promise<void>): Subscription {
    checkName(options.name, 'the name of a consumer');
    checkPattern(options.subject);
    const next = options.start === 'all' ? 0 : this.#lastSeq() + 1;
    this.#db
      .prepare(
        'INSERT INTO consumers (name, next, used, inactive) VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET used = excluded.used, inactive = excluded.inactive',
      )
      .run(options.name, next, this.#now(), options.inactiveMs);
    const consumer = new LocalConsumer(this, options, handler, () => {
      this.#consumers.delete(consumer);
      this.#db.prepare('UPDATE consumers SET used = ? WHERE name = ?').run(this.#now(), options.name);
    });
    this.#consumers.add(consumer);
    consumer.wake();
    return consumer;
  }

  async deadLetters(limit: number): Promise<readonly DeadLetter[]> {
    return this.#dead.newest(limit);
  }

  async retryDead(id: string, signal: AbortSignal): Promise<boolean> {
    const letter = this.#dead.find(id);
    if (letter === undefined) return false;
    await this.publish({ subject: letter.subject, id: retryId(letter), payload: letter.payload }, signal);
    return this.#dead.drop(id);
  }

  async dropDead(id: string): Promise<boolean> {
    return this.#dead.drop(id);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#consumers].map((consumer) => consumer[Symbol.asyncDispose]()));
    if (this.#db.isOpen) this.#db.close();
  }

  /** Takes the next event for a consumer and counts the attempt; or says when to look again. */
  take(options: ConsumerOptions): Taken | { readonly dueInMs: number } | undefined {
    const now = this.#now();
    const running = this.#runningOf(options.name);
    const waiting = this.#db
      .prepare('SELECT seq, attempts, due FROM pending WHERE consumer = ? ORDER BY due, seq LIMIT ?')
      .all(options.name, running.size + 1)
      .find((row) => !running.has(Number(row.seq)));
    if (waiting && Number(waiting.due) <= now) {
      const seq = Number(waiting.seq);
      const event = this.#db.prepare('SELECT subject, payload FROM events WHERE seq = ?').get(seq);
      if (!event) {
        this.settle(options.name, seq);
        return this.take(options);
      }
      const attempt = Number(waiting.attempts) + 1;
      this.#db
        .prepare('UPDATE pending SET attempts = ? WHERE consumer = ? AND seq = ?')
        .run(attempt, options.name, seq);
      running.add(seq);
      return { seq, subject: String(event.subject), payload: event.payload as Uint8Array, attempt };
    }
    const fresh = this.#takeFresh(options);
    if (fresh) running.add(fresh.seq);
    return fresh ?? (waiting && { dueInMs: Number(waiting.due) - now });
  }

  #takeFresh(options: ConsumerOptions): Taken | undefined {
    let next = Number(this.#db.prepare('SELECT next FROM consumers WHERE name = ?').get(options.name)?.next ?? 0);
    const before = next;
    let found: Taken | undefined;
    for (let more = true; more && !found; ) {
      const rows = this.#db
        .prepare('SELECT seq, subject FROM events WHERE seq >= ? ORDER BY seq LIMIT ?')
        .all(next, SCAN);
      more = rows.length === SCAN;
      for (const row of rows) {
        const seq = Number(row.seq);
        next = seq + 1;
        if (!matches(options.subject, String(row.subject))) continue;
        const payload = this.#db.prepare('SELECT payload FROM events WHERE seq = ?').get(seq)?.payload as Uint8Array;
        found = { seq, subject: String(row.subject), payload, attempt: 1 };
        break;
      }
    }
    if (next === before) return undefined;
    this.#db.exec('BEGIN');
    if (found) {
      this.#db
        .prepare('INSERT OR REPLACE INTO pending (consumer, seq, attempts, due) VALUES (?, ?, 1, 0)')
        .run(options.name, found.seq);
    }
    this.#db.prepare('UPDATE consumers SET next = ? WHERE name = ?').run(next, options.name);
    this.#db.exec('COMMIT');
    return found;
  }

  /** The event is done with: handled or dead. */
  settle(name: string, seq: number): void {
    this.#runningOf(name).delete(seq);
    this.#db.prepare('DELETE FROM pending WHERE consumer = ? AND seq = ?').run(name, seq);
  }

  again(name: string, seq: number, pauseMs: number): void {
    this.#runningOf(name).delete(seq);
    this.#db.prepare('UPDATE pending SET due = ? WHERE consumer = ? AND seq = ?').run(this.#now() + pauseMs, name, seq);
  }

  bury(name: string, taken: Taken, attempts: number, reason: string): void {
    const { subject, payload } = taken;
    this.#dead.bury({ atMs: this.#now(), consumer: name, subject, reason, attempts, payload });
    this.settle(name, taken.seq);
  }

  #runningOf(name: string): Set<number> {
    let running = this.#running.get(name);
    if (!running) this.#running.set(name, (running = new Set()));
    return running;
  }

  #lastSeq(): number {
    return Number(this.#db.prepare('SELECT max(seq) AS last FROM events').get()?.last ?? 0);
  }

  #prune(): void {
    const now = this.#now();
    this.#db.prepare('DELETE FROM events WHERE at < ?').run(now - BUS_LIMITS.eventAgeMs);
    const total = Number(this.#db.prepare('SELECT total(length(payload)) AS bytes FROM events').get()?.bytes ?? 0);
    if (total > BUS_LIMITS.eventBytes) {
      this.#db.exec(
        'DELETE FROM events WHERE seq <= (SELECT seq FROM events ORDER BY seq LIMIT 1 OFFSET (SELECT count(*) / 2 FROM events))',
      );
    }
    const active = new Set([...this.#consumers].map((consumer) => consumer.name));
    for (const row of this.#db.prepare('SELECT name FROM consumers WHERE used + inactive < ?').all(now)) {
      if (active.has(String(row.name))) continue;
      this.#db.prepare('DELETE FROM consumers WHERE name = ?').run(String(row.name));
      this.#db.prepare('DELETE FROM pending WHERE consumer = ?').run(String(row.name));
    }
    this.#dead.prune();
  }
}

class LocalConsumer implements AsyncDisposable {
  readonly name: string;
  readonly #log: LocalEventLog;
  readonly #options: ConsumerOptions;
  readonly #handler: (delivery: Delivery) => Promise<void>;
  readonly #onDispose: () => void;
  readonly #stop = new AbortController();
  readonly #running = new Set<Promise<void>>();
  #timer: NodeJS.Timeout | undefined;
  #woken = false;

  constructor(
    log: LocalEventLog,
    options: ConsumerOptions,
    handler: (delivery: Delivery) => Promise<void>,
    onDispose: () => void,
  ) {
    this.name = options.name;
    this.#log = log;
    this.#options = options;
    this.#handler = handler;
    this.#onDispose = onDispose;
  }

  wake(): void {
    if (this.#woken) return;
    this.#woken = true;
    setImmediate(() => {
      this.#woken = false;
      this.#pump();
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#stop.signal.aborted) return;
    this.#stop.abort(new BusError('closed', `The consumer ${this.name} was closed`));
    clearTimeout(this.#timer);
    await Promise.all(this.#running);
    this.#onDispose();
  }

  #pump(): void {
    clearTimeout(this.#timer);
    const limit = Math.min(this.#options.concurrency, BUS_LIMITS.concurrency);
    while (!this.#stop.signal.aborted && this.#running.size < limit) {
      const taken = this.#log.take(this.#options);
      if (!taken) return;
      if ('dueInMs' in taken) {
        this.#timer = setTimeout(() => this.#pump(), Math.max(1, taken.dueInMs));
        return;
      }
      const work = this.#handle(taken).finally(() => {
        this.#running.delete(work);
        this.wake();
      });
      this.#running.add(work);
    }
  }

  async #handle(taken: Taken): Promise<void> {
    const { maxAttempts } = this.#options;
    if (taken.attempt > maxAttempts) {
      this.#log.bury(this.name, taken, taken.attempt - 1, 'Every attempt ended with the process that made it');
      return;
    }
    try {
      await this.#handler({ ...taken, signal: this.#stop.signal });
      this.#log.settle(this.name, taken.seq);
    } catch (error) {
      if (this.#stop.signal.aborted) this.#log.again(this.name, taken.seq, 0);
      else if (error instanceof RejectedEvent || taken.attempt >= maxAttempts) {
        this.#log.bury(this.name, taken, taken.attempt, reasonOf(error));
      } else this.#log.again(this.name, taken.seq, retryPauseMs(this.#options, taken.attempt));
    }
  }
}

/** Of a dead letter: short, one line. */
export function reasonOf(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.replaceAll(/[^\x20-\x7e]+/g, ' ').slice(0, 500);
}

/** The same each time, so that a letter that is put back twice in a row is one event. */
export function retryId(letter: Pick<DeadLetter, 'id' | 'atMs'>): string {
  return `retry-${letter.id}-${letter.atMs}`;
}
