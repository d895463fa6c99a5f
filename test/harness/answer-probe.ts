import { spawn, type ChildProcess } from 'node:child_process';
import { createInterface } from 'node:readline';
import { join } from 'node:path';
import { disposeOnInterrupt } from './interrupt.ts';

/** The machine's monotonic clock in ms: the same in every process. */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

/** An answer that was on its way when the agent died may arrive this much later. */
const ON_ITS_WAY_MS = 5;
/** Reads kept: those around the last kill. */
const MAX_READS = 1000;

/** Tells how long the FUSE session did not answer: a process that reads through the agent all the time. */
export class AnswerProbe implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #forget: () => void;
  readonly #reads: { readonly startMs: number; readonly endMs: number }[] = [];
  #waiting: (() => void)[] = [];
  #errors = '';
  #ended = false;

  private constructor(child: ChildProcess) {
    this.#child = child;
    this.#forget = disposeOnInterrupt(this);
    const wake = (): void => {
      for (const go of this.#waiting.splice(0)) go();
    };
    if (child.stdout !== null) {
      createInterface({ input: child.stdout }).on('line', (line) => {
        const [startMs = 0, endMs = 0] = line.split(' ').map(Number);
        this.#reads.push({ startMs, endMs });
        if (this.#reads.length > MAX_READS) this.#reads.splice(0, MAX_READS / 2);
        wake();
      });
    }
    child.stderr?.setEncoding('utf8').on('data', (text: string) => (this.#errors += text));
    child.once('exit', () => {
      this.#ended = true;
      wake();
    });
  }

  /** `file`: a layer image in the FUSE mount that stays on the disk as long as the probe. */
  static start(file: string): AnswerProbe {
    const main = join(import.meta.dirname, 'answer-probe-main.ts');
    return new AnswerProbe(
      spawn(process.execPath, ['--disable-warning=ExperimentalWarning', main, file], {
        stdio: ['ignore', 'pipe', 'pipe'],
      }),
    );
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

  check(): void {
    if (this.#ended) throw new Error(`The probe ended: ${this.#errors.slice(-2_000)}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#forget();
    if (this.#ended) return;
    const ended = new Promise<void>((resolve) => this.#child.once('exit', () => resolve()));
    this.#child.kill('SIGKILL');
    await ended;
  }
}
