import { Worker } from 'node:worker_threads';
import { LayerError } from '#shared/layer/layer-index.ts';
import type { StreamFormat } from './any-walker.ts';
import { type StreamCut, WALK_BUFFER_BYTES } from './stream-walker.ts';
import { INPUT_SLOTS, RING_SLOTS, type WalkOrder, type WalkReport, type WalkThreadData } from './walk-message.ts';

/** The thread makes hardly any objects; Node's default young generation would be 48 MiB. */
const YOUNG_GENERATION_MIB = 4;

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
  readonly #input = new SharedArrayBuffer(INPUT_SLOTS * WALK_BUFFER_BYTES);
  readonly #ring = new SharedArrayBuffer(RING_SLOTS * WALK_BUFFER_BYTES);
  readonly #freed = new Int32Array(new SharedArrayBuffer(4));
  readonly #sink: WalkReceiver;
  /** Buffers of the blob that were handed over and that the thread has finished with, ever. */
  #pushed = 0;
  #finished = 0;
  #failure: unknown;
  #format: StreamFormat | undefined;
  /** Wakes whoever waits for room or for the end. */
  #wake: (() => void) | undefined;

  constructor(sink: WalkReceiver, blobSize: number) {
    this.#sink = sink;
    const workerData: WalkThreadData = {
      blobSize,
      input: this.#input,
      ring: this.#ring,
      freed: this.#freed.buffer as SharedArrayBuffer,
    };
    this.#worker = new Worker(new URL('./walk-worker.ts', import.meta.url), {
      workerData,
      resourceLimits: { maxYoungGenerationSizeMb: YOUNG_GENERATION_MIB },
    });
    this.#worker.on('message', (report: WalkReport) => this.#report(report));
    this.#worker.on('error', (error) => this.#fail(error));
    this.#worker.on('exit', () => this.#fail(new Error('the thread that walks the blob has ended early')));
  }

  /** Resolves when all of it is in the thread's hands. */
  async push(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      await this.#until(() => this.#pushed - this.#finished < INPUT_SLOTS);
      const slot = this.#pushed % INPUT_SLOTS;
      const length = Math.min(bytes.length - at, WALK_BUFFER_BYTES);
      new Uint8Array(this.#input, slot * WALK_BUFFER_BYTES, length).set(bytes.subarray(at, at + length));
      this.#pushed += 1;
      this.#post({ kind: 'push', slot, length });
      at += length;
    }
  }

  async end(): Promise<StreamFormat> {
    this.#post({ kind: 'end' });
    await this.#until(() => this.#format !== undefined);
    return this.#format ?? 'tar';
  }

  async close(): Promise<void> {
    this.#worker.removeAllListeners('message');
    await this.#worker.terminate();
  }

  #post(order: WalkOrder): void {
    this.#worker.postMessage(order);
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
      case 'cut':
        this.#sink.cut(report.cut);
        return;
      case 'amend':
        this.#sink.amend(report.blobOffset, report.blobLength);
        return;
      case 'pushed':
        this.#finished += 1;
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
