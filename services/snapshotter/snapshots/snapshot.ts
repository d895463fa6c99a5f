import type { Digest } from '#shared/digest/digest.ts';

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
