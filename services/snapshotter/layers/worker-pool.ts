import { setPriority } from 'node:os';
import { Worker } from 'node:worker_threads';
import type { FetchPriority } from './span-source.ts';
import type { WorkerAnswer, WorkerJob, WorkerResults } from './worker-job.ts';

/** An error that came out of a worker: its class is lost on the way, its name and code are not. */
export class WorkerError extends Error {
  override readonly name = 'WorkerError';
  readonly code: string;
  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

interface Pending {
  readonly job: WorkerJob;
  readonly transfer: readonly ArrayBuffer[];
  readonly priority: FetchPriority;
  resolve(result: unknown): void;
  reject(error: unknown): void;
  early(): void;
}

interface Slot {
  readonly worker: Worker;
  job: Pending | undefined;
  idleSinceMs: number;
  ending: boolean;
  thread: number | undefined;
  niceness: number;
}

/** A thread that had nothing to do for this long ends: one that has built a large layer keeps some 50 MiB of heap. */
const IDLE_MS = 15_000;
/** Threads that never end: the first miss after a quiet hour must not wait for one to come up. */
const KEPT = 1;

/** Of a thread whose job nobody waits for: where there are fewer cores than work, readers' threads and the main one go first. */
const NICENESS: Readonly<Record<FetchPriority, number>> = { demand: 0, prefetch: 10, background: 10 };

/** Root may; without it a thread that was made nice once would stay so. */
const MAY_RENICE = process.platform === 'linux' && process.geteuid?.() === 0;

const ORDER: readonly FetchPriority[] = ['demand', 'prefetch', 'background'];

/**
 * Threads that inflate, hash, write, and build layer images. One more than is ever busy with anything but demand reads, so
 * that a demand read never waits for another's build or background span. Threads start when they are first needed.
 */
export class WorkerPool {
  #size: number;
  readonly #queues: Record<FetchPriority, Pending[]> = { demand: [], prefetch: [], background: [] };
  readonly #slots: Slot[] = [];
  readonly #entry: URL;
  #reaper: NodeJS.Timeout | undefined;
  #activity = 0;
  #closed = false;

  constructor(options: { readonly size: number; readonly entry?: URL }) {
    this.#size = Math.max(2, options.size);
    this.#entry = options.entry ?? new URL('./layer-worker.ts', import.meta.url);
  }

  /** A number that changes with each job and each thread's end. */
  get activity(): number {
    return this.#activity;
  }

  /** How many threads there may be, from now on. */
  resize(size: number): void {
    this.#size = Math.max(2, size);
    this.#dispatch();
  }

  /** Starts `count` threads before there is work for them: a thread takes some 50 ms to come up. */
  warm(count: number): void {
    while (this.#slots.length < Math.min(count, this.#size)) this.#grow();
  }

  /** Bytes in `transfer` are gone for the caller. `early`: what was wanted of a `store` job is readable. @throws WorkerError */
  run<K extends keyof WorkerResults>(
    job: WorkerJob & { readonly kind: K },
    priority: FetchPriority,
    transfer: readonly ArrayBuffer[] = [],
    early: () => void = () => undefined,
  ): Promise<WorkerResults[K]> {
    if (this.#closed) return Promise.reject(new WorkerError('closed', 'The workers are closed'));
    return new Promise<WorkerResults[K]>((resolve, reject) => {
      this.#queues[priority].push({
        job,
        transfer,
        priority,
        resolve: (result) => resolve(result as WorkerResults[K]),
        reject,
        early,
      });
      this.#dispatch();
    });
  }

  /** The job goes on as demand. Where no thread has taken it yet `changed` is called before, and may change it. */
  promote(job: WorkerJob, changed: () => void): void {
    for (const priority of ['prefetch', 'background'] as const) {
      const queue = this.#queues[priority];
      const at = queue.findIndex((pending) => pending.job === job);
      const [pending] = at < 0 ? [] : queue.splice(at, 1);
      if (pending === undefined) continue;
      changed();
      this.#queues.demand.push({ ...pending, priority: 'demand' });
      this.#dispatch();
      return;
    }
    const slot = this.#slots.find((candidate) => candidate.job?.job === job);
    if (slot !== undefined) setNiceness(slot, 'demand');
  }

  /** Waits for what runs; what is queued is refused. */
  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#reaper);
    for (const priority of ORDER) {
      for (const pending of this.#queues[priority].splice(0)) {
        pending.reject(new WorkerError('closed', 'The workers are closed'));
      }
    }
    await Promise.all(
      this.#slots.map(async ({ worker }) => {
        // Taken after its last job: a thread that is ended in a write would leave half of it unreported.
        await new Promise<void>((resolve) => {
          worker.once('exit', () => resolve());
          // Nothing else may keep the process alive until the last write is done.
          worker.ref();
          worker.postMessage({ kind: 'end' } satisfies WorkerJob);
        });
      }),
    );
  }

  #dispatch(): void {
    for (const priority of ORDER) {
      const queue = this.#queues[priority];
      while (queue.length > 0) {
        if (priority !== 'demand' && this.#busyBelowDemand() >= this.#size - 1) return;
        const slot = this.#slots.find((candidate) => candidate.job === undefined && !candidate.ending) ?? this.#grow();
        const pending = slot === undefined ? undefined : queue.shift();
        if (slot === undefined || pending === undefined) return;
        slot.job = pending;
        this.#activity++;
        slot.worker.ref();
        setNiceness(slot, pending.priority);
        slot.worker.postMessage(pending.job, pending.transfer);
      }
    }
  }

  #reapLater(): void {
    this.#reaper ??= setTimeout(() => {
      this.#reaper = undefined;
      this.#reap();
    }, IDLE_MS).unref();
  }

  #reap(): void {
    const now = performance.now();
    const live = this.#slots.filter(({ ending }) => !ending);
    const idle = live.filter(({ job, idleSinceMs }) => job === undefined && now - idleSinceMs >= IDLE_MS - 1);
    const surplus = Math.max(0, live.length - KEPT);
    // The oldest first: it is the one that has built most.
    for (const slot of idle.slice(0, surplus)) {
      slot.ending = true;
      slot.worker.postMessage({ kind: 'end' } satisfies WorkerJob);
    }
    if (live.length - Math.min(idle.length, surplus) > KEPT) this.#reapLater();
  }

  #busyBelowDemand(): number {
    return this.#slots.filter(({ job }) => job !== undefined && job.priority !== 'demand').length;
  }

  #grow(): Slot | undefined {
    if (this.#slots.filter(({ ending }) => !ending).length >= this.#size) return undefined;
    const worker = new Worker(this.#entry, {
      name: 'kindling-layers',
      // Building the image of a layer with 300,000 entries takes some 300 MiB.
      resourceLimits: { maxOldGenerationSizeMb: 1024, maxYoungGenerationSizeMb: 16 },
    });
    const slot: Slot = {
      worker,
      job: undefined,
      idleSinceMs: performance.now(),
      ending: false,
      thread: undefined,
      niceness: 0,
    };
    worker.unref();
    worker.on('message', (answer: WorkerAnswer) => {
      const pending = slot.job;
      if ('thread' in answer) {
        slot.thread = answer.thread;
        if (slot.job !== undefined) setNiceness(slot, slot.job.priority);
        return;
      }
      if ('early' in answer) {
        pending?.early();
        return;
      }
      slot.job = undefined;
      slot.idleSinceMs = performance.now();
      if (!this.#closed) worker.unref();
      this.#reapLater();
      if (pending !== undefined) {
        if ('error' in answer) pending.reject(new WorkerError(answer.error.code, answer.error.message));
        else pending.resolve(answer.result);
      }
      this.#dispatch();
    });
    worker.on('error', (cause) => {
      // Out of memory on one layer must not take the agent, nor the other layers, with it.
      // Until it has exited it must get no other job.
      slot.ending = true;
      slot.job?.reject(new WorkerError('crashed', `A layer worker ended: ${String(cause)}`, { cause }));
      slot.job = undefined;
    });
    worker.on('exit', () => {
      slot.job?.reject(new WorkerError('crashed', 'A layer worker ended'));
      this.#activity++;
      const at = this.#slots.indexOf(slot);
      if (at >= 0) this.#slots.splice(at, 1);
      if (!this.#closed) this.#dispatch();
    });
    this.#slots.push(slot);
    return slot;
  }
}

/** Does nothing where a niceness cannot be taken back: that takes a privilege. */
function setNiceness(slot: Slot, priority: FetchPriority): void {
  const niceness = NICENESS[priority];
  if (slot.thread === undefined || niceness === slot.niceness || !MAY_RENICE) return;
  try {
    setPriority(slot.thread, niceness);
    slot.niceness = niceness;
  } catch {
    // The thread has just ended.
  }
}
