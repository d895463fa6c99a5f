/** How much a node gives at a time. */
export interface UploadLimits {
  /** Transfers served at a time; more would make each of them late for everybody behind it. */
  readonly active: number;
  /** Requests that wait for a slot; those behind them are told to go elsewhere. */
  readonly queued: number;
}

export const UPLOAD_LIMITS: UploadLimits = { active: 5, queued: 6 };

/** A slot that is held until disposed. */
export type UploadSlot = Disposable;

/** The node's upload slots: first come, first served, the queue bounded. */
export class UploadSlots {
  readonly #limits: UploadLimits;
  readonly #queue: (() => void)[] = [];
  #active = 0;

  constructor(limits: UploadLimits = UPLOAD_LIMITS) {
    this.#limits = limits;
  }

  get active(): number {
    return this.#active;
  }

  get queued(): number {
    return this.#queue.length;
  }

  /** undefined = busy: neither a slot nor a place in the queue is free. Rejects with the signal's reason. */
  take(signal: AbortSignal): Promise<UploadSlot> | undefined {
    const isFull = this.#active >= this.#limits.active && this.#queue.length >= this.#limits.queued;
    return isFull ? undefined : this.#take(signal);
  }

  async #take(signal: AbortSignal): Promise<UploadSlot> {
    signal.throwIfAborted();
    if (this.#active >= this.#limits.active) {
      // The slot of the one that leaves is handed on, so that nobody who comes just then overtakes.
      await new Promise<void>((resolve, reject) => {
        const next = () => {
          signal.removeEventListener('abort', leave);
          resolve();
        };
        const leave = () => {
          this.#queue.splice(this.#queue.indexOf(next), 1);
          reject(signal.reason as Error);
        };
        this.#queue.push(next);
        signal.addEventListener('abort', leave, { once: true });
      });
    } else this.#active++;
    let held = true;
    return {
      [Symbol.dispose]: () => {
        if (!held) return;
        held = false;
        const next = this.#queue.shift();
        if (next === undefined) this.#active--;
        else next();
      },
    };
  }
}
