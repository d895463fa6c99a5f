import type { FetchTarget } from './fetch-target.ts';
import { RANK, type SpanTask } from './span-task.ts';

export interface GatheredRun {
  readonly first: number;
  readonly last: number;
  readonly members: Map<number, SpanTask>;
}

/**
 * The task and the queued ones that touch it, as far as one request may go: `limit` bytes of the blob. `stream` = first span of those
 * that come only together with the task's: of these all go into the run, and none but these.
 */
export function gatherRun(
  task: SpanTask,
  tasks: ReadonlyMap<number, SpanTask> | undefined,
  limit: number,
  stream: number | undefined,
): GatheredRun {
  const { map } = task.target;
  const joins = (span: number, lowest: number) => {
    const other = tasks?.get(span);
    const fits = other?.state === 'queued' && other.source === task.source && RANK[other.priority] >= lowest;
    return fits && map.streamOf(span)?.[0] === stream ? other : undefined;
  };
  const members = new Map<number, SpanTask>([[task.span, task]]);
  let first = task.span;
  let last = task.span;
  // Before it only what is as urgent, since it delays the span; behind it whatever is wanted.
  const before = stream === undefined ? RANK[task.priority] : 0;
  for (;;) {
    const other = joins(first - 1, before);
    if (other === undefined || map.blobEnd(last) - map.blobStart(first - 1) > limit) break;
    members.set(--first, other);
  }
  for (;;) {
    const other = joins(last + 1, 0);
    if (other === undefined || map.blobEnd(last + 1) - map.blobStart(first) > limit) break;
    members.set(++last, other);
  }
  return { first, last, members };
}

/**
 * How many missing spans behind `last`, in `bytes` of the blob, may come along with it.
 */
export function tailOf(
  target: FetchTarget,
  tasks: ReadonlyMap<number, SpanTask> | undefined,
  last: number,
  bytes: number,
): number {
  const { map } = target;
  const limit = map.blobEnd(last) + bytes;
  const joins = (span: number): boolean =>
    map.blobEnd(span) <= limit && !target.has(span) && tasks?.has(span) !== true && map.streamOf(span) === undefined;
  if (map.streamOf(last) !== undefined) return 0;
  let end = last + 1;
  while (end < map.spanCount && joins(end)) end++;
  return end - last - 1;
}
