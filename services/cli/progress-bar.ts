import type { WriteStream } from 'node:tty';

/** One line that is written anew; nothing where the output is no terminal. */
export class ProgressBar implements Disposable {
  readonly #out: Pick<WriteStream, 'write' | 'isTTY' | 'columns'>;
  #shown = false;

  constructor(out: Pick<WriteStream, 'write' | 'isTTY' | 'columns'> = process.stderr) {
    this.#out = out;
  }

  /** `done` of `total`, each in the same unit, and what is being done. */
  show(done: number, total: number, what: string): void {
    if (!this.#out.isTTY) return;
    const width = 24;
    const share = total === 0 ? 1 : Math.min(1, done / total);
    const filled = Math.round(share * width);
    const line = `[${'='.repeat(filled)}${' '.repeat(width - filled)}] ${String(Math.round(share * 100)).padStart(3)} %  ${what}`;
    this.#out.write(`\r\u001B[K${line.slice(0, (this.#out.columns || 80) - 1)}`);
    this.#shown = true;
  }

  /** Takes the line away, so that text can be written. */
  clear(): void {
    if (this.#shown) this.#out.write('\r\u001B[K');
    this.#shown = false;
  }

  [Symbol.dispose](): void {
    this.clear();
  }
}
