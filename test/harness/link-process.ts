import { spawn, type ChildProcess } from 'node:child_process';
import { createInterface } from 'node:readline';
import { join } from 'node:path';
import { disposeOnInterrupt } from './interrupt.ts';
import type { Shape } from './shaped-proxy.ts';

/** A link to a port of 127.0.0.1 with bandwidth and latency, made by a process of its own, that counts what comes through. */
export class LinkProcess implements AsyncDisposable {
  readonly port: number;
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  readonly #forget: () => void;

  private constructor(child: ChildProcess, lines: AsyncIterator<string>, port: number) {
    this.#child = child;
    this.#lines = lines;
    this.port = port;
    this.#forget = disposeOnInterrupt(this);
  }

  static async start(targetPort: number, shape: Shape, signal: AbortSignal): Promise<LinkProcess> {
    const child = spawn(
      process.execPath,
      [
        '--disable-warning=ExperimentalWarning',
        join(import.meta.dirname, 'shaped-proxy-main.ts'),
        ...[targetPort, shape.bytesPerSecond ?? 0, shape.delayMs ?? 0].map(String),
      ],
      { stdio: ['pipe', 'pipe', 'inherit'], signal },
    );
    child.once('error', () => {
      // An abort: the pipes end, which is noticed below.
    });
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    return new LinkProcess(child, lines, await nextNumber(lines));
  }

  get host(): string {
    return `127.0.0.1:${this.port}`;
  }

  /** Bytes that have come from the target. */
  async bytesDown(): Promise<number> {
    this.#child.stdin?.write('bytes\n');
    return await nextNumber(this.#lines);
  }

  /** From now on it is as fast as it can be. */
  unlimited(): void {
    this.#child.stdin?.write('unlimited\n');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#forget();
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const ended = new Promise<void>((resolve) => this.#child.once('exit', () => resolve()));
    this.#child.kill('SIGKILL');
    await ended;
  }
}

async function nextNumber(lines: AsyncIterator<string>): Promise<number> {
  const line = await lines.next();
  if (line.done === true) throw new Error('The process of a shaped link has ended');
  return Number(line.value);
}
