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

const PARAMETERS = '/sys/module/overlay/parameters';

/** Options that only some kernels know; what this one knows does not change while we run. */
let known: { readonly index: readonly string[]; readonly redirect: readonly string[] } | undefined;

function knownOptions(): NonNullable<typeof known> {
  known ??= {
    // As containerd's own overlayfs snapshotter: a kernel that indexes refuses layers that are used twice.
    index: existsSync(`${PARAMETERS}/index`) ? ['index=off'] : [],
    // So that a directory of a layer below can be renamed, which containerd's suite for snapshotters asks for.
    redirect: existsSync(`${PARAMETERS}/redirect_dir`) ? ['redirect_dir=on'] : [],
  };
  return known;
}

/** The mounts of an active snapshot or a view, as containerd's overlayfs snapshotter gives them. */
export function overlayMounts(plan: MountPlan): readonly SnapshotMount[] {
  const { lowers } = plan;
  const isView = plan.kind === 'view';
  const [only] = lowers;
  if (only === undefined) return [bind(plan.fs, isView)];
  if (isView && lowers.length === 1) return [bind(only, true)];
  const { index, redirect } = knownOptions();
  const upper = isView ? [] : [...redirect, `workdir=${plan.work}`, `upperdir=${plan.fs}`];
  return [{ type: 'overlay', source: 'overlay', options: [...index, ...upper, `lowerdir=${lowers.join(':')}`] }];
}

function bind(source: string, readOnly: boolean): SnapshotMount {
  return { type: 'bind', source, options: [readOnly ? 'ro' : 'rw', 'rbind'] };
}
