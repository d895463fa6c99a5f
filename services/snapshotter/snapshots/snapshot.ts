import type { Digest } from '#shared/digest/digest.ts';
import { SnapshotError } from './snapshot-error.ts';

export type SnapshotKind = 'view' | 'active' | 'committed';

/** Nanoseconds since the epoch: containerd compares what it gets with its own clock. */
export type Nanoseconds = bigint;

/** What a snapshot occupies on this node's disk. */
export interface Usage {
  readonly sizeBytes: number;
  readonly inodes: number;
}

export interface Snapshot {
  /** Ours alone, never used again; names the snapshot's folder. */
  readonly id: number;
  /** containerd's key (active, view) or name (committed), unique over all kinds. */
  readonly name: string;
  readonly kind: SnapshotKind;
  /** Name of the committed snapshot below; empty = none. */
  readonly parent: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly createdAt: Nanoseconds;
  readonly updatedAt: Nanoseconds;
  /** The layer whose image is this snapshot's content; undefined = its folder is. */
  readonly layer: Digest | undefined;
  /** Of a committed folder, once somebody asked. */
  readonly usage: Usage | undefined;
}

export const SNAPSHOT_LIMITS = {
  /** Bytes of a key or name: paths and chain IDs are far below. */
  nameBytes: 4096,
  /** Bytes of a label's key and value together; containerd's own limit. */
  labelBytes: 4096,
  /** Labels of a snapshot. */
  labels: 256,
  /** Snapshots below each other: overlayfs takes 500 lower layers. */
  depth: 500,
  /** Filters of a List, and bytes of each. */
  filters: 64,
  filterBytes: 16 * 1024,
} as const;

/** @throws SnapshotError `invalid` */
export function checkName(name: string, what: 'key' | 'name'): void {
  if (name === '' || Buffer.byteLength(name) > SNAPSHOT_LIMITS.nameBytes) {
    throw new SnapshotError(
      'invalid',
      `Cannot use snapshot ${what} ${JSON.stringify(name.slice(0, 100))}: 1 to ${SNAPSHOT_LIMITS.nameBytes} bytes are allowed`,
    );
  }
}

/** The labels themselves. @throws SnapshotError `invalid` */
export function checkLabels(labels: Readonly<Record<string, string>>): Readonly<Record<string, string>> {
  const entries = Object.entries(labels);
  if (entries.length > SNAPSHOT_LIMITS.labels) {
    throw new SnapshotError('invalid', `Cannot set ${entries.length} labels: ${SNAPSHOT_LIMITS.labels} are allowed`);
  }
  for (const [key, value] of entries) {
    if (Buffer.byteLength(key) + Buffer.byteLength(value) > SNAPSHOT_LIMITS.labelBytes) {
      throw new SnapshotError(
        'invalid',
        `Cannot set label ${JSON.stringify(key.slice(0, 100))}: key and value are over ${SNAPSHOT_LIMITS.labelBytes} bytes`,
      );
    }
  }
  return labels;
}
