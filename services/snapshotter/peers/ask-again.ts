export interface AskLimits {
  /** Times in all. */
  readonly asks: number;
  /** Between one and the next, while none is answered. */
  readonly lateMs: number;
}

export interface Answered<T> {
  readonly answer: T;
  /** Since that one was asked. */
  readonly tookMs: number;
  /** How many were asked until it came. */
  readonly asks: number;
}

/**
 * Asks again when an answer is late, since of several that may answer one may stand still. The first answer counts, and those that are
 * still to come are given up. @throws what the last of them has failed with, when all that were asked have failed
 */
export async function askAgain<T>(
  ask: (signal: AbortSignal) => Promise<T>,
  { asks, lateMs }: AskLimits,
  signal: AbortSignal,
): Promise<Answered<T>> {
  const over = new AbortController();
  const either = AbortSignal.any([signal, over.signal]);
  let timer: NodeJS.Timeout | undefined;
  try {
    return await new Promise<Answered<T>>((resolve, reject) => {
      let asked = 0;
      let failed = 0;
      const one = (): void => {
        asked++;
        if (asked < asks) timer = setTimeout(one, lateMs);
        const startMs = performance.now();
        ask(either).then(
          (answer) => resolve({ answer, tookMs: performance.now() - startMs, asks: asked }),
          (error: unknown) => {
            // One that says no at once says it for all; while others are asked, one of them may still answer.
            if (++failed === asked) reject(error as Error);
          },
        );
      };
      one();
    });
  } finally {
    clearTimeout(timer);
    over.abort(new Error('Another answer has come'));
  }
}
