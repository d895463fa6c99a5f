import { existsSync } from 'node:fs';
import type { SnapshotKind } from './snapshot.ts';

/** A mount as containerd takes it. */
export interface SnapshotMount {
  readonly type: 'bind' | 'overlay';
  readonly source: string;
  readonly options: readonly string[];
}

export interface MountPlan {
  readonly kind: SnapshotKind;
  /** Folder of the snapshot itself. */
  readonly fs: string;
  readonly work: string;
  /** Read-only roots below it, topmost first. */
  readonly lowers: readonly string[];
}

/** As containerd's own overlayfs snapshotter: without it, a kernel with an index refuses layers that are used twice. */
let indexOption: readonly string[] | undefined;

/** The mounts of an active snapshot or a view, as containerd's overlayfs snapshotter gives them. */
export function overlayMounts(plan: MountPlan): readonly SnapshotMount[] {
  const { lowers } = plan;
  const isView = plan.kind === 'view';
  const [only] = lowers;
  if (only === undefined) return [bind(plan.fs, isView)];
  if (isView && lowers.length === 1) return [bind(only, true)];
  indexOption ??= existsSync('/sys/module/overlay/parameters/index') ? ['index=off'] : [];
  const upper = isView ? [] : [`workdir=${plan.work}`, `upperdir=${plan.fs}`];
  return [{ type: 'overlay', source: 'overlay', options: [...indexOption, ...upper, `lowerdir=${lowers.join(':')}`] }];
}

function bind(source: string, readOnly: boolean): SnapshotMount {
  return { type: 'bind', source, options: [readOnly ? 'ro' : 'rw', 'rbind'] };
}
