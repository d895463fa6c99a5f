import { Worker } from 'node:worker_threads';
import { LayerError } from '#shared/layer/layer-index.ts';
import type { StreamFormat } from './any-walker.ts';
import { type StreamCut, WALK_BUFFER_BYTES } from './stream-walker.ts';
import { RING_SLOTS, type WalkOrder, type WalkReport, type WalkThreadData } from './walk-message.ts';

/** Compressed bytes on their way to the thread before `push` waits. */
const MAX_QUEUED_BYTES = 2 * 1024 * 1024;

export interface WalkReceiver {
  /** Valid only during the call. */
  data(bytes: Buffer): void;
  cut(cut: StreamCut): void;
  amend(blobOffset: number, blobLength: number): void;
}

/**
 * A walker on a thread of its own. What it decodes comes back in a ring of shared buffers; the thread sleeps while all of
 * them are full, so that memory stays bounded whatever a blob decodes to.
 */
export class WalkThread {
  readonly #worker: Worker;
  readonly #ring = new SharedArrayBuffer(RING_SLOTS * WALK_BUFFER_BYTES);
  readonly #freed = new Int32Array(new SharedArrayBuffer(4));
  readonly #sink: WalkReceiver;
  readonly #queued: number[] = [];
  #queuedBytes = 0;
  #failure: unknown;
  #format: StreamFormat | undefined;
  /** Wakes whoever waits for room or for the end. */
  #wake: (() => void) | undefined;

  constructor(sink: WalkReceiver, blobSize: number) {
    this.#sink = sink;
    const workerData: WalkThreadData = { blobSize, ring: this.#ring, freed: this.#freed.buffer as SharedArrayBuffer };
    this.#worker = new Worker(new URL('./walk-worker.ts', import.meta.url), { workerData });
    this.#worker.on('message', (report: WalkReport) => this.#report(report));
    this.#worker.on('error', (error) => this.#fail(error));
    this.#worker.on('exit', () => this.#fail(new Error('the thread that walks the blob has ended early')));
  }

  /** Resolves when there is room for more. */
  async push(bytes: Uint8Array): Promise<void> {
    const copy = new Uint8Array(bytes);
    this.#post({ kind: 'push', bytes: copy }, [copy.buffer]);
    this.#queued.push(bytes.length);
    this.#queuedBytes += bytes.length;
    await this.#until(() => this.#queuedBytes <= MAX_QUEUED_BYTES);
  }

  async end(): Promise<StreamFormat> {
    this.#post({ kind: 'end' }, []);
    await this.#until(() => this.#format !== undefined);
    return this.#format ?? 'tar';
  }

  async close(): Promise<void> {
    this.#worker.removeAllListeners('message');
    await this.#worker.terminate();
  }

  #post(order: WalkOrder, transfer: ArrayBuffer[]): void {
    this.#worker.postMessage(order, transfer);
  }

  async #until(done: () => boolean): Promise<void> {
    while (this.#failure === undefined && !done()) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    if (this.#failure !== undefined) throw this.#failure;
  }

  #fail(error: unknown): void {
    this.#failure ??= error;
    this.#wake?.();
  }

  #report(report: WalkReport): void {
    if (this.#failure !== undefined) return;
    try {
      this.#take(report);
    } catch (error) {
      this.#fail(error);
    }
  }

  #take(report: WalkReport): void {
    switch (report.kind) {
      case 'data':
        this.#sink.data(Buffer.from(this.#ring, report.slot * WALK_BUFFER_BYTES, report.length));
        Atomics.add(this.#freed, 0, 1);
        Atomics.notify(this.#freed, 0);
        return;
      case 'cut': {
        const { checkpoint } = report.cut;
        const window = checkpoint === undefined ? undefined : Buffer.from(checkpoint.window);
        this.#sink.cut(
          checkpoint === undefined || window === undefined
            ? report.cut
            : { ...report.cut, checkpoint: { ...checkpoint, window } },
        );
        return;
      }
      case 'amend':
        this.#sink.amend(report.blobOffset, report.blobLength);
        return;
      case 'pushed':
        this.#queuedBytes -= this.#queued.shift() ?? 0;
        this.#wake?.();
        return;
      case 'ended':
        this.#format = report.format;
        this.#wake?.();
        return;
      case 'refused':
        this.#fail(new LayerError(report.code, report.message));
    }
  }
}
