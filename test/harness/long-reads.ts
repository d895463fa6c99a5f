/** A read that took long; the machine's monotonic clock in ms. */
export interface LongRead {
  readonly startMs: number;
  readonly endMs: number;
  readonly path: string;
}

/** Something that a wait may be due to. */
export interface Moment {
  readonly atMs: number;
  readonly what: string;
}

export interface ExplainedRead {
  readonly path: string;
  readonly ms: number;
  /** What happened in the meantime, as `+MS WHAT`. */
  readonly meanwhile: readonly string[];
}

/** A kill just before a read is the beginning of its wait, too. */
const BEFORE_MS = 1_000;

/** The `count` longest reads, each with what happened in the meantime. */
export function explainLongest(
  reads: readonly LongRead[],
  moments: readonly Moment[],
  count: number,
): readonly ExplainedRead[] {
  const inOrder = moments.toSorted((a, b) => a.atMs - b.atMs);
  return reads
    .toSorted((a, b) => b.endMs - b.startMs - (a.endMs - a.startMs))
    .slice(0, count)
    .map(({ startMs, endMs, path }) => ({
      path,
      ms: Math.round(endMs - startMs),
      meanwhile: inOrder
        .filter(({ atMs }) => atMs >= startMs - BEFORE_MS && atMs <= endMs)
        .map(({ atMs, what }) => `${atMs < startMs ? '' : '+'}${Math.round(atMs - startMs)} ${what}`),
    }));
}
