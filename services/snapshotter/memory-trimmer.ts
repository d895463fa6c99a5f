import koffi from 'koffi';
import type { Logger } from '#shared/telemetry/logger.ts';

/** How often it is looked whether a burst is over. */
const CHECK_MS = 5_000;

/**
 * Gives memory back after a burst. V8 collects when it allocates, so after a pull or a start an idle agent would keep tens of
 * megabytes of buffers for ever; and what is freed stays with malloc's arenas until they are trimmed.
 */
export class MemoryTrimmer {
  readonly #activity: () => number;
  readonly #trim: (pad: number) => number;
  readonly #logger: Logger;
  readonly #timer: NodeJS.Timeout;
  #seen = -1;
  #trimmed = true;

  /** `activity` is a number that changes while there is work. */
  constructor(activity: () => number, logger: Logger) {
    this.#logger = logger;
    this.#activity = activity;
    this.#trim = koffi.load('libc.so.6').func('int malloc_trim(size_t pad)') as (pad: number) => number;
    this.#timer = setInterval(() => this.#check(), CHECK_MS).unref();
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  #check(): void {
    const now = this.#activity();
    if (now !== this.#seen) {
      this.#seen = now;
      this.#trimmed = false;
      return;
    }
    if (this.#trimmed) return;
    this.#trimmed = true;
    // Also what is only kept in case it is wanted again, and the gaps between what is kept. Exposed by AGENT_FLAGS.
    void globalThis.gc?.({ type: 'major', execution: 'sync', flavor: 'last-resort' });
    this.#trim(0);
    this.#logger.debug({ memory: process.memoryUsage() }, 'Gave memory back');
  }
}
