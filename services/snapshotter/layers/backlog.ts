/** How far the completion of a layer in the background has come. */
export interface Backlog {
  /** Spans before it were wanted in this round. */
  cursor: number;
  pausedUntilMs: number;
  pauses: number;
}

/** First pause after a failure; doubles up to a minute. */
const FIRST_PAUSE_MS = 2_000;
const MAX_PAUSE_MS = 60_000;

/** After a failure: the next round begins later. */
export function pauseBacklog(backlog: Backlog, nowMs: number): void {
  if (backlog.pausedUntilMs > nowMs) return;
  backlog.cursor = 0;
  backlog.pausedUntilMs = nowMs + Math.min(MAX_PAUSE_MS, FIRST_PAUSE_MS * 2 ** backlog.pauses++);
}
