import { DatabaseSync, type StatementSync } from 'node:sqlite';
import { isDigest, type Digest } from '#shared/digest/digest.ts';
import { isDiskFull, SnapshotError } from './snapshot-error.ts';
import { SNAPSHOT_LIMITS, type Nanoseconds, type Snapshot, type SnapshotKind } from './snapshot.ts';
import { SpareSpace } from './spare-space.ts';

/** A layer that containerd had to pull as a whole, kept for `status`. */
export interface NotLazyRecord {
  readonly layer: Digest;
  readonly imageReference: string;
  readonly code: string;
  readonly reason: string;
  readonly at: Nanoseconds;
}

/** A removal writes a few pages of 4 KiB, and the log of changes may have to be put into the database first. */
const SPARE_BYTES = 256 * 1024;
/** The newest ones say what there is to say. */
const MAX_NOT_LAZY_RECORDS = 1000;

const SCHEMA = `
  CREATE TABLE IF NOT EXISTS snapshots (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    name       TEXT NOT NULL UNIQUE,
    kind       TEXT NOT NULL,
    parent_id  INTEGER REFERENCES snapshots (id),
    labels     TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    layer      TEXT,
    has_cover  INTEGER NOT NULL DEFAULT 0,
    owner_uid  INTEGER NOT NULL DEFAULT 0,
    owner_gid  INTEGER NOT NULL DEFAULT 0,
    size_bytes INTEGER,
    inodes     INTEGER
  ) STRICT;
  CREATE INDEX IF NOT EXISTS snapshots_by_parent ON snapshots (parent_id);
  CREATE INDEX IF NOT EXISTS snapshots_by_layer ON snapshots (layer);
  CREATE TABLE IF NOT EXISTS not_lazy (
    layer     TEXT PRIMARY KEY,
    reference TEXT NOT NULL,
    code      TEXT NOT NULL,
    reason    TEXT NOT NULL,
    at        INTEGER NOT NULL
  ) STRICT;
  PRAGMA user_version = 1;
`;

const COLUMNS = `s.id, s.name, s.kind, coalesce(p.name, '') AS parent, s.labels, s.created_at, s.updated_at, s.layer,
  s.has_cover, s.owner_uid, s.owner_gid, s.size_bytes, s.inodes
  FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent_id`;

type Row = Record<string, unknown>;

export interface NewSnapshot {
  /** From `reserveId`, where the folder had to be there first. */
  readonly id?: number;
  readonly name: string;
  readonly kind: SnapshotKind;
  readonly parent: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly layer?: Digest | undefined;
  readonly hasCover?: boolean;
  readonly owner?: { readonly uid: number; readonly gid: number };
}

/**
 * What the snapshots service knows, in one SQLite file. Every method is one transaction that is on disk when it returns:
 * after a crash or a power loss the store is as it was after one of its calls.
 *
 * Rejections are SnapshotErrors, thrown: the calls are synchronous and take well under a millisecond besides the fsync.
 */
export class SnapshotStore {
  readonly #db: DatabaseSync;
  readonly #now: () => Nanoseconds;
  readonly #byName: StatementSync;
  readonly #ancestors: StatementSync;
  readonly #spare: SpareSpace;
  #closed = false;

  constructor(path: string, now: () => Nanoseconds) {
    this.#now = now;
    this.#spare = new SpareSpace(`${path}-spare`, SPARE_BYTES);
    this.#db = new DatabaseSync(path, { readBigInts: true });
    // EXCLUSIVE before WAL: the log's index then lives in our heap and not in a shared-memory file, whose pages a full
    // disk turns into SIGBUS.
    this.#db.exec('PRAGMA locking_mode = EXCLUSIVE');
    this.#db.exec('PRAGMA journal_mode = WAL');
    this.#db.exec('PRAGMA synchronous = FULL');
    this.#db.exec('PRAGMA foreign_keys = ON');
    this.#db.exec(SCHEMA);
    this.#byName = this.#db.prepare(`SELECT ${COLUMNS} WHERE s.name = ?`);
    this.#ancestors = this.#db.prepare(`
      WITH RECURSIVE chain (id, depth) AS (
        SELECT parent_id, 1 FROM snapshots WHERE id = ?
        UNION ALL SELECT s.parent_id, depth + 1 FROM snapshots s JOIN chain c ON s.id = c.id WHERE depth <= ${SNAPSHOT_LIMITS.depth}
      ) SELECT ${COLUMNS} JOIN chain c ON c.id = s.id ORDER BY c.depth`);
  }

  find(name: string): StoredSnapshot | undefined {
    const row = this.#byName.get(name);
    return row === undefined ? undefined : toSnapshot(row);
  }

  /** @throws SnapshotError `not-found` */
  get(name: string): StoredSnapshot {
    const found = this.find(name);
    if (found === undefined) throw new SnapshotError('not-found', `Cannot find snapshot ${JSON.stringify(name)}`);
    return found;
  }

  /** Parent first, then its parent, and so on. */
  ancestors(snapshot: Snapshot): readonly StoredSnapshot[] {
    return this.#ancestors.all(snapshot.id).map(toSnapshot);
  }

  /** A committed snapshot that stands for a chain ID (`containerd.io/snapshot.ref`) on this parent. */
  findTarget(label: string, value: string, parent: string): StoredSnapshot | undefined {
    const rows = this.#db
      .prepare(`SELECT ${COLUMNS} WHERE s.kind = 'committed' AND coalesce(p.name, '') = ? AND s.layer IS NOT NULL`)
      .all(parent);
    return rows.map(toSnapshot).find((snapshot) => snapshot.labels[label] === value);
  }

  /** In the order in which they were made. */
  *all(): Generator<StoredSnapshot, void, undefined> {
    // A page at a time: callers may change the store, or be slow, between two of them.
    const page = this.#db.prepare(`SELECT ${COLUMNS} WHERE s.id > ? ORDER BY s.id LIMIT 256`);
    for (let last = 0; ; ) {
      const rows = page.all(last);
      if (rows.length === 0) return;
      for (const row of rows) {
        const snapshot = toSnapshot(row);
        last = snapshot.id;
        yield snapshot;
      }
    }
  }

  ids(): ReadonlySet<number> {
    return new Set(
      this.#db
        .prepare('SELECT id FROM snapshots')
        .all()
        .map((row) => Number(row['id'])),
    );
  }

  /** Digests of the layers that snapshots stand on. */
  layers(): ReadonlySet<Digest> {
    const rows = this.#db.prepare('SELECT DISTINCT layer FROM snapshots WHERE layer IS NOT NULL').all();
    return new Set(rows.map((row) => row['layer']).filter(isDigest));
  }

  /** An ID that no snapshot has or had. */
  reserveId(): number {
    return this.#transaction(() => {
      const { lastInsertRowid } = this.#db
        .prepare(
          "INSERT INTO snapshots (name, kind, labels, created_at, updated_at) VALUES ('', 'reserved', '{}', 0, 0)",
        )
        .run();
      this.#db.prepare('DELETE FROM snapshots WHERE id = ?').run(lastInsertRowid);
      return Number(lastInsertRowid);
    });
  }

  create(snapshot: NewSnapshot): StoredSnapshot {
    return this.#transaction(() => this.#insert(snapshot));
  }

  #insert(snapshot: NewSnapshot): StoredSnapshot {
    const parentId = snapshot.parent === '' ? null : this.requireCommitted(snapshot.parent).id;
    if (this.find(snapshot.name) !== undefined) throw exists(snapshot.name);
    const now = this.#now();
    this.#db
      .prepare(
        `INSERT INTO snapshots (id, name, kind, parent_id, labels, created_at, updated_at, layer, has_cover, owner_uid, owner_gid)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
      )
      .run(
        snapshot.id ?? null,
        snapshot.name,
        snapshot.kind,
        parentId,
        JSON.stringify(snapshot.labels),
        now,
        now,
        snapshot.layer ?? null,
        snapshot.hasCover === true ? 1 : 0,
        snapshot.owner?.uid ?? 0,
        snapshot.owner?.gid ?? 0,
      );
    return this.get(snapshot.name);
  }

  /**
   * Creates a snapshot in the place of a committed one of its name. Layers that stand on the old one stand on the new one then, containers stay
   * where they are; nothing new finds the old one, by name or by `label`.
   */
  replace(old: StoredSnapshot, label: string, snapshot: NewSnapshot): StoredSnapshot {
    return this.#transaction(() => {
      const { [label]: _, ...labels } = old.labels;
      this.#db
        .prepare('UPDATE snapshots SET name = ?, labels = ?, updated_at = ? WHERE id = ?')
        .run(`${old.name}@replaced-${old.id}`, JSON.stringify(labels), this.#now(), old.id);
      const created = this.#insert(snapshot);
      this.#db
        .prepare("UPDATE snapshots SET parent_id = ? WHERE parent_id = ? AND kind = 'committed'")
        .run(created.id, old.id);
      return created;
    });
  }

  /**
   * Turns the active snapshot `key` into the committed `name`; its labels are replaced. A snapshot without parent may get
   * one (containerd 2.2's `rebase`).
   */
  commit(
    key: string,
    name: string,
    labels: Readonly<Record<string, string>>,
    parent: string,
    owner: { readonly uid: number; readonly gid: number },
  ): StoredSnapshot {
    return this.#transaction(() => {
      const active = this.get(key);
      if (active.kind !== 'active') {
        throw new SnapshotError('failed-precondition', `Cannot commit ${JSON.stringify(key)}: it is ${active.kind}`);
      }
      if (this.find(name) !== undefined) throw exists(name);
      if (parent !== '' && active.parent !== '' && parent !== active.parent) {
        throw new SnapshotError(
          'invalid',
          `Cannot commit ${JSON.stringify(key)} on ${JSON.stringify(parent)}: it was prepared on ${JSON.stringify(active.parent)}`,
        );
      }
      const parentName = active.parent || parent;
      const parentId = parentName === '' ? null : this.requireCommitted(parentName).id;
      const now = this.#now();
      this.#db
        .prepare(
          `UPDATE snapshots SET name = ?, kind = 'committed', parent_id = ?, labels = ?, created_at = ?, updated_at = ?,
           owner_uid = ?, owner_gid = ? WHERE id = ?`,
        )
        .run(name, parentId, JSON.stringify(labels), now, now, owner.uid, owner.gid, active.id);
      return this.get(name);
    });
  }

  /** Replaces all labels. */
  setLabels(
    name: string,
    change: (old: Readonly<Record<string, string>>) => Readonly<Record<string, string>>,
  ): StoredSnapshot {
    return this.#transaction(() => {
      const labels = change(this.get(name).labels);
      this.#db
        .prepare('UPDATE snapshots SET labels = ?, updated_at = ? WHERE name = ?')
        .run(JSON.stringify(labels), this.#now(), name);
      return this.get(name);
    });
  }

  setUsage(id: number, usage: { readonly sizeBytes: number; readonly inodes: number }): void {
    this.#db
      .prepare('UPDATE snapshots SET size_bytes = ?, inodes = ? WHERE id = ?')
      .run(usage.sizeBytes, usage.inodes, id);
  }

  /** Works on a full disk too: what else should free it? */
  remove(name: string): StoredSnapshot {
    try {
      return this.#remove(name);
    } catch (error) {
      if (!isDiskFull(error)) throw error;
      this.#spare.release();
      // The log of changes begins anew, in the room that it has had.
      this.#db.exec('PRAGMA wal_checkpoint(TRUNCATE)');
      return this.#remove(name);
    }
  }

  /** Folders of removed snapshots have gone: there may be room again for the next time. */
  spare(): void {
    if (!this.#closed) this.#spare.refill();
  }

  #remove(name: string): StoredSnapshot {
    return this.#transaction(() => {
      const snapshot = this.get(name);
      if (this.#db.prepare('SELECT 1 FROM snapshots WHERE parent_id = ? LIMIT 1').get(snapshot.id) !== undefined) {
        throw new SnapshotError(
          'failed-precondition',
          `Cannot remove snapshot ${JSON.stringify(name)}: another one stands on it`,
        );
      }
      this.#db.prepare('DELETE FROM snapshots WHERE id = ?').run(snapshot.id);
      return snapshot;
    });
  }

  recordNotLazy(record: Omit<NotLazyRecord, 'at'>): void {
    this.#transaction(() => {
      this.#db
        .prepare('INSERT OR REPLACE INTO not_lazy (layer, reference, code, reason, at) VALUES (?, ?, ?, ?, ?)')
        .run(record.layer, record.imageReference, record.code, record.reason.slice(0, 2000), this.#now());
      this.#db
        .prepare('DELETE FROM not_lazy WHERE layer NOT IN (SELECT layer FROM not_lazy ORDER BY at DESC LIMIT ?)')
        .run(MAX_NOT_LAZY_RECORDS);
    });
  }

  forgetNotLazy(layer: Digest): void {
    this.#db.prepare('DELETE FROM not_lazy WHERE layer = ?').run(layer);
  }

  /** Newest first. */
  notLazy(): readonly NotLazyRecord[] {
    const rows = this.#db.prepare('SELECT * FROM not_lazy ORDER BY at DESC').all();
    return rows.map((row) => ({
      layer: row['layer'] as Digest,
      imageReference: String(row['reference']),
      code: String(row['code']),
      reason: String(row['reason']),
      at: row['at'] as bigint,
    }));
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#db.close();
  }

  /** @throws SnapshotError `not-found`; `invalid` when it is not committed. */
  requireCommitted(name: string): StoredSnapshot {
    const parent = this.find(name);
    if (parent === undefined) {
      throw new SnapshotError(
        'not-found',
        `Cannot find the parent snapshot ${JSON.stringify(name)}; where the data folder was moved or emptied, kindling pull brings it back`,
      );
    }
    if (parent.kind !== 'committed') {
      throw new SnapshotError('invalid', `Cannot stand on snapshot ${JSON.stringify(name)}: it is not committed`);
    }
    return parent;
  }

  #transaction<T>(work: () => T): T {
    this.#db.exec('BEGIN IMMEDIATE');
    try {
      const result = work();
      this.#db.exec('COMMIT');
      return result;
    } catch (error) {
      if (this.#db.isTransaction) this.#db.exec('ROLLBACK');
      throw error;
    }
  }
}

/** A snapshot with what only this service needs of it. */
export interface StoredSnapshot extends Snapshot {
  /** A cover directory lies above the layer (see `buildCover`). */
  readonly hasCover: boolean;
  /** Owner of its root directory. */
  readonly owner: { readonly uid: number; readonly gid: number };
}

function exists(name: string): SnapshotError {
  return new SnapshotError('already-exists', `Cannot create snapshot ${JSON.stringify(name)}: it exists already`);
}

function toSnapshot(row: Row): StoredSnapshot {
  const layer = row['layer'];
  return {
    id: Number(row['id']),
    name: String(row['name']),
    kind: row['kind'] as SnapshotKind,
    parent: String(row['parent']),
    labels: JSON.parse(String(row['labels'])) as Record<string, string>,
    createdAt: row['created_at'] as bigint,
    updatedAt: row['updated_at'] as bigint,
    layer: isDigest(layer) ? layer : undefined,
    usage:
      row['size_bytes'] === null ? undefined : { sizeBytes: Number(row['size_bytes']), inodes: Number(row['inodes']) },
    hasCover: row['has_cover'] === 1n,
    owner: { uid: Number(row['owner_uid']), gid: Number(row['owner_gid']) },
  };
}
