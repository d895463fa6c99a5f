import { spawn, type ChildProcess } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { disposeOnInterrupt } from './interrupt.ts';

/** Kept of what it has said on stderr, for the error message. */
const ERROR_CHARS = 2_000;

export interface Reading {
  /** From this folder. */
  readonly script: string;
  readonly args: readonly string[];
  readonly input?: string;
  /** Gets every line that it prints. */
  readonly onLine: (line: string) => void;
}

/**
 * A process of its own that reads what we serve: a mount is never read by the process that may have to serve it. It goes on until it is
 * disposed, and ends by itself only at an error or a wrong byte.
 */
export class ReadingProcess implements AsyncDisposable {
  readonly ended: Promise<void>;
  readonly #child: ChildProcess;
  readonly #script: string;
  readonly #forget: () => void;
  #errors = '';
  #hasEnded = false;

  private constructor(child: ChildProcess, script: string) {
    this.#child = child;
    this.#script = script;
    this.ended = new Promise((resolve) =>
      child.once('exit', () => {
        this.#hasEnded = true;
        resolve();
      }),
    );
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.#errors = (this.#errors + text).slice(-ERROR_CHARS);
    });
    this.#forget = disposeOnInterrupt(this);
  }

  static start({ script, args, input = '', onLine }: Reading): ReadingProcess {
    const file = join(import.meta.dirname, script);
    const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', file, ...args]);
    createInterface({ input: child.stdout }).on('line', onLine);
    child.stdin.end(input);
    return new ReadingProcess(child, script);
  }

  /** @throws Error when it has ended */
  check(): void {
    if (this.#hasEnded) throw new Error(`${this.#script} ended: ${this.#errors}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.ended;
    this.#forget();
  }
}
