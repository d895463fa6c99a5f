/** When and how often a failed request is tried again. Times in milliseconds. */
export interface BackOff {
  readonly attempts: number;
  readonly firstDelayMs: number;
  readonly maxDelayMs: number;
  /** A registry that asks for a longer wait is answered by failing: the caller knows better what to do meanwhile. */
  readonly maxRetryAfterMs: number;
}

export const DEFAULT_BACK_OFF: BackOff = {
  attempts: 4,
  firstDelayMs: 100,
  maxDelayMs: 5_000,
  maxRetryAfterMs: 20_000,
};

/** An attempt that brought less than this got nowhere: breaking off after each byte must not go on for ever. */
export const PROGRESS_BYTES = 16 * 1024;

/** The wait before attempt `attempt + 1`: doubling, half of it random so that many nodes do not come back at once. */
export function delayAfter(attempt: number, policy: BackOff, retryAfterMs: number | undefined): number {
  const full = Math.min(policy.maxDelayMs, policy.firstDelayMs * 2 ** (attempt - 1));
  return Math.max(retryAfterMs ?? 0, full / 2 + (Math.random() * full) / 2);
}

/** Reads `Retry-After`: seconds or an HTTP date; undefined where absent or malformed. */
export function retryAfterMs(header: string | undefined, nowMs: number): number | undefined {
  if (header === undefined) return undefined;
  if (/^\d{1,9}$/.test(header)) return Number(header) * 1000;
  const at = Date.parse(header);
  return Number.isNaN(at) ? undefined : Math.max(0, at - nowMs);
}
