import type { Digest } from '#shared/digest/digest.ts';
import type { SpanMap } from '#shared/layer/span-map.ts';
import type { FetchPriority, LayerOrigin, SpanBytes, SpanSource } from './span-source.ts';

/** What the scheduler fills: a layer on this node. */
export interface FetchTarget {
  readonly layer: Digest;
  readonly map: SpanMap;
  readonly origins: readonly LayerOrigin[];
  has(span: number): boolean;
  /** First span at or after `from` that is not resident, or -1. */
  nextMissing(from: number): number;
  /** Whether the span lies on disk since before an unclean boot, and has not been verified again. */
  suspects(span: number): boolean;
  /** Verifies a suspect. True: it is resident now; false: it is not, and must be fetched. */
  verify(span: number, priority: FetchPriority): Promise<boolean>;
  /**
   * Decodes, verifies and keeps. `mismatch`: the bytes are not the span's. `retry`: there was no room, and now there is.
   * @throws LayerReadError `no-space` or `closed`, which no other source would help.
   */
  store(span: number, bytes: SpanBytes, priority: FetchPriority): Promise<'stored' | 'mismatch' | 'retry'>;
  /** A reader has come for a span that is being stored at a lower priority. */
  urgent(span: number): void;
}

/** What the scheduler tells of its work; for statistics, metrics and the log. Called on the way: must be quick. */
export interface FetchObserver {
  fetched(event: FetchedSpan): void;
  failed(event: FailedFetch): void;
}

export interface FetchedSpan {
  readonly target: FetchTarget;
  readonly span: number;
  readonly source: SpanSource['name'];
  /** As delivered: compressed bytes or payload. */
  readonly bytes: number;
  readonly priority: FetchPriority;
  /** From when the span was first wanted to when it was resident. */
  readonly waitedMs: number;
}

export interface FailedFetch {
  readonly target: FetchTarget;
  readonly span: number;
  readonly source: SpanSource['name'];
  readonly reason: 'mismatch' | 'error' | 'not-delivered';
  readonly cause: unknown;
  /** Whether the readers of the span have got an error now. */
  readonly final: boolean;
}
