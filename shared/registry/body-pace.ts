/**
 * What a body has to bring within the time that we wait for it: less than any link in use, so whoever sends less holds us up, by a
 * byte now and then that no time-out for silence ends.
 */
export interface Pace {
  readonly bytes: number;
  readonly ms: number;
}

export const PACE: Pace = { bytes: 16 * 1024, ms: 30_000 };

/**
 * Hands on chunks as they come. Only waiting for them counts: a reader may be as slow as it likes.
 *
 * @throws what `tooSlow` makes, when they come more slowly than `pace`
 */
export async function* paced(
  chunks: AsyncIterable<Buffer>,
  tooSlow: () => Error,
  pace: Pace = PACE,
  now: () => number = () => performance.now(),
): AsyncGenerator<Buffer, void, undefined> {
  let bytes = 0;
  let waitedMs = 0;
  let since = now();
  for await (const chunk of chunks) {
    bytes += chunk.length;
    waitedMs += now() - since;
    if (waitedMs >= pace.ms) {
      if (bytes < pace.bytes) throw tooSlow();
      bytes = 0;
      waitedMs = 0;
    }
    yield chunk;
    since = now();
  }
}
