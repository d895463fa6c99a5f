import type { SpanMap } from '#shared/layer/span-map.ts';

/** Ascending spans as runs of adjacent ones, each at most `limitBytes` of the blob (or one span). */
export function* adjacentRuns(
  spans: readonly number[],
  map: Pick<SpanMap, 'blobStart' | 'blobEnd'>,
  limitBytes: number,
): Generator<number[]> {
  let run: number[] = [];
  for (const span of spans) {
    const first = run[0];
    const last = run.at(-1);
    const fits = first !== undefined && last === span - 1 && map.blobEnd(span) - map.blobStart(first) <= limitBytes;
    if (!fits && run.length > 0) {
      yield run;
      run = [];
    }
    run.push(span);
  }
  if (run.length > 0) yield run;
}
