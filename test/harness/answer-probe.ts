import { ReadingProcess } from './reading-process.ts';

/** An answer that was on its way when the agent died may arrive this much later. */
const ON_ITS_WAY_MS = 5;
/** Reads kept: those around the last kill. */
const MAX_READS = 1000;

/** Tells how long the FUSE session did not answer: a process that reads through the agent all the time. */
export class AnswerProbe implements AsyncDisposable {
  readonly #process: ReadingProcess;
  readonly #reads: { readonly startMs: number; readonly endMs: number }[] = [];
  readonly #waiting: (() => void)[] = [];

  /** `file`: a layer image in the FUSE mount that stays on the disk as long as the probe. */
  constructor(file: string) {
    this.#process = ReadingProcess.start({
      script: 'answer-probe-main.ts',
      args: [file],
      onLine: (line) => {
        const [startMs = 0, endMs = 0] = line.split(' ').map(Number);
        this.#reads.push({ startMs, endMs });
        if (this.#reads.length > MAX_READS) this.#reads.splice(0, MAX_READS / 2);
        this.#wake();
      },
    });
    void this.#process.ended.then(() => this.#wake());
  }

  /** From `diedAtMs`, when the agent was dead, to the first answer of another. @throws Error when the probe's reads fail */
  async untilAnswer(diedAtMs: number, signal: AbortSignal): Promise<number> {
    for (;;) {
      const first = this.#reads.find(({ startMs, endMs }) => startMs > diedAtMs || endMs > diedAtMs + ON_ITS_WAY_MS);
      if (first !== undefined) return first.endMs - diedAtMs;
      this.check();
      signal.throwIfAborted();
      await new Promise<void>((resolve) => {
        this.#waiting.push(resolve);
        signal.addEventListener('abort', () => resolve(), { once: true });
      });
    }
  }

  #wake(): void {
    for (const go of this.#waiting.splice(0)) go();
  }

  /** @throws Error when its reads fail */
  check(): void {
    this.#process.check();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process[Symbol.asyncDispose]();
  }
}
