import { LayerReadError } from './layer-error.ts';
import type { FetchTarget } from './fetch-target.ts';
import type { FetchPriority, SpanBytes, SpanRequest, SpanSource } from './span-source.ts';

export const RANK: Readonly<Record<FetchPriority, number>> = { demand: 2, prefetch: 1, background: 0 };

/** One reader that waits for one or more spans. */
export interface Waiter {
  readonly tasks: Set<SpanTask>;
  settle(error?: unknown): void;
}

/** A span that is wanted and not here. There is at most one for a span: that is what makes fetches single. */
export interface SpanTask {
  readonly target: FetchTarget;
  readonly span: number;
  readonly wantedMs: number;
  readonly waiters: Set<Waiter>;
  priority: FetchPriority;
  state: 'queued' | 'verifying' | 'running' | 'storing' | 'backing-off';
  run: Run | undefined;
  timer: NodeJS.Timeout | undefined;
  /** Which source is next. */
  source: number;
  rounds: number;
  mismatches: number;
  failedSinceMs: number | undefined;
}

/** A request in flight: for a range of the blob, or for a part of what one pass over it brings. */
export interface Run {
  readonly target: FetchTarget;
  readonly request: SpanRequest;
  readonly source: SpanSource;
  readonly tasks: Map<number, SpanTask>;
  readonly abort: AbortController;
  readonly bytes: number;
  /** As what it counts among those in flight. */
  readonly counts: FetchPriority;
  /** Part of a pass over the blob, which goes on for as long as that takes. */
  readonly isStream: boolean;
  /** Next span that the stream is to bring. */
  next: number;
  /** Ended by us, for somebody more urgent: no fault of the source. */
  cut: boolean;
  /** When a reader waited for it last. */
  waitedMs: number;
  /** End the pauses that it makes because nobody waits for it. */
  readonly wakes: Set<() => void>;
}

export function wake(run: Run): void {
  for (const end of run.wakes) end();
}

export function hasWaiters(run: Run): boolean {
  for (const { waiters } of run.tasks.values()) if (waiters.size > 0) return true;
  return false;
}

/** All that it was to bring has come. */
export function isOver(run: Run): boolean {
  for (const task of run.tasks.values()) if (task.run === run && task.state === 'running') return false;
  return true;
}

export function endRun(run: Run, why: string): void {
  run.abort.abort(new Error(why));
  wake(run);
}

/** As the source gave it: of the blob, or payload. */
export function sizeOf(bytes: SpanBytes): number {
  return bytes.form === 'decoded' ? bytes.blobBytes : bytes.bytes.length;
}

export function closedError(target: FetchTarget): LayerReadError {
  return new LayerReadError('closed', `Cannot read ${target.layer}: the agent is shutting down`);
}

export function readError(task: SpanTask, lying: boolean, cause: unknown): LayerReadError {
  const what = `Cannot read span ${task.span} of ${task.target.layer}`;
  const where = task.target.origins.map((origin) => origin.repository).join(', ') || 'no known repository';
  return lying
    ? new LayerReadError('mismatch', `${what}: what ${where} serves does not match the digest; push the image again`)
    : new LayerReadError(
        'unavailable',
        `${what}: no source has it (${where}): ${cause instanceof Error ? cause.message : 'not delivered'}`,
        { cause },
      );
}
