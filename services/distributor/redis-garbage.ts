/** What Redis holds under a key of ours is none of ours. */
export class GarbageError extends Error {
  override readonly name = 'GarbageError';
  readonly code = 'garbage';
}

/** Told by scripts that find a value which they cannot read. */
export const GARBAGE_REPLY = 'GARBAGE';

/** A failure of Redis itself, also where a script has met it. */
const OTHER =
  /\b(OOM|READONLY|BUSY|LOADING|MASTERDOWN|CLUSTERDOWN|MOVED|ASK|TRYAGAIN|NOSCRIPT|NOAUTH|NOPERM|NOREPLICAS|MISCONF|UNKILLABLE)\b/;
const GARBAGE = new RegExp(`\\b(WRONGTYPE|${GARBAGE_REPLY}|not an integer|not a valid float|user_script)\\b`);

/** Whether the keys that were read or changed hold what nobody of us has written: another type, or values that are cut short or wrong. */
export function isGarbage(error: unknown): boolean {
  if (error instanceof GarbageError) return true;
  return (
    error instanceof Error && error.name === 'ReplyError' && GARBAGE.test(error.message) && !OTHER.test(error.message)
  );
}

/** The answers of a transaction. @throws the first of its errors */
export function answersOf(results: readonly (readonly [Error | null, unknown])[] | null): unknown[] {
  return (results ?? []).map(([error, answer]) => {
    if (error !== null) throw error;
    return answer;
  });
}

/** @throws GarbageError when it is no integer from 0 on */
export function countOf(text: string | undefined, what: string): number {
  if (text !== undefined && /^\d{1,15}$/.test(text)) return Number(text);
  throw new GarbageError(`Cannot read ${what} in Redis: it is no number`);
}
