import type { DatabaseSync } from 'node:sqlite';
import { BUS_LIMITS, type DeadLetter } from './bus.ts';

const SCHEMA = `
CREATE TABLE IF NOT EXISTS dead (number INTEGER PRIMARY KEY AUTOINCREMENT, consumer TEXT NOT NULL, subject TEXT NOT NULL,
  reason TEXT NOT NULL, attempts INTEGER NOT NULL, payload BLOB NOT NULL, at INTEGER NOT NULL DEFAULT 0);
`;

/** The dead letters of a LocalEventLog, in its database. */
export class LocalDeadLetters {
  readonly #db: DatabaseSync;

  constructor(db: DatabaseSync) {
    this.#db = db;
    db.exec(SCHEMA);
    // A table that the first version made does not have the time.
    const columns = db.prepare('PRAGMA table_info(dead)').all();
    if (!columns.some(({ name }) => name === 'at'))
      db.exec('ALTER TABLE dead ADD COLUMN at INTEGER NOT NULL DEFAULT 0');
  }

  bury({ consumer, subject, reason, attempts, payload, atMs }: Omit<DeadLetter, 'id'>): void {
    this.#db
      .prepare('INSERT INTO dead (consumer, subject, reason, attempts, payload, at) VALUES (?, ?, ?, ?, ?, ?)')
      .run(consumer, subject, reason, attempts, payload, atMs);
  }

  newest(limit: number): readonly DeadLetter[] {
    const rows = this.#db.prepare('SELECT * FROM dead ORDER BY number DESC LIMIT ?').all(limit);
    return rows.toReversed().map((row) => letterOf(row));
  }

  find(id: string): DeadLetter | undefined {
    const row = this.#db.prepare('SELECT * FROM dead WHERE number = ?').get(id);
    return row && letterOf(row);
  }

  drop(id: string): boolean {
    return Number(this.#db.prepare('DELETE FROM dead WHERE number = ?').run(id).changes) > 0;
  }

  prune(): void {
    this.#db.prepare('DELETE FROM dead WHERE number <= (SELECT max(number) FROM dead) - ?').run(BUS_LIMITS.deadLetters);
  }
}

function letterOf(row: Record<string, unknown>): DeadLetter {
  return {
    id: String(row['number']),
    atMs: Number(row['at']),
    consumer: String(row['consumer']),
    subject: String(row['subject']),
    reason: String(row['reason']),
    attempts: Number(row['attempts']),
    payload: row['payload'] as Uint8Array,
  };
}
