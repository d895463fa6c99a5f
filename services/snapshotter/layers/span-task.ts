import { LayerReadError } from './layer-error.ts';
import type { FetchTarget } from './fetch-target.ts';
import type { FetchPriority, SpanRequest, SpanSource } from './span-source.ts';

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

/** A range request in flight. */
export interface Run {
  readonly request: SpanRequest;
  readonly source: SpanSource;
  readonly tasks: Map<number, SpanTask>;
  readonly abort: AbortController;
  readonly bytes: number;
  /** Next span that the stream is to bring. */
  next: number;
  /** Ended by us, for somebody more urgent: no fault of the source. */
  cut: boolean;
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
