import type { FetchPace } from './fetch-pace.ts';
import { hasWaiters, isOver, wake, type Run } from './span-task.ts';

/** When a pass over a blob goes on: at once while a reader waits for a part of it, else like other work in the background. */
export class BackgroundTurn {
  readonly #pace: FetchPace;
  readonly #quietMs: number;
  readonly #now: () => number;

  constructor(pace: FetchPace, quietMs: number, now: () => number) {
    this.#pace = pace;
    this.#quietMs = quietMs;
    this.#now = now;
  }

  /** After so many bytes of the blob. A reader that comes (`wake`) ends the pause; with the last span all of them end. */
  async turn(run: Run, bytes: number): Promise<void> {
    if (isOver(run)) wake(run);
    if (hasWaiters(run)) {
      run.waitedMs = this.#now();
      this.#pace.noteDemand();
      return;
    }
    // Whoever has read one part soon reads another.
    if (this.#now() - run.waitedMs < this.#quietMs) return;
    this.#pace.tookBackground(bytes);
    for (;;) {
      const pauseMs = this.#pace.backgroundPauseMs();
      if (pauseMs <= 0 || run.abort.signal.aborted || hasWaiters(run) || isOver(run)) return;
      await new Promise<void>((resolve) => {
        const end = () => {
          clearTimeout(timer);
          run.wakes.delete(end);
          resolve();
        };
        const timer = setTimeout(end, Math.ceil(pauseMs));
        run.wakes.add(end);
      });
    }
  }
}
