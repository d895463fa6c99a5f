/** How much a node gives at a time. */
export interface UploadLimits {
  /** Transfers served at a time; more would make each of them late for everybody behind it. */
  readonly active: number;
  /** Requests that wait for a slot; those behind them are told to go elsewhere. */
  readonly queued: number;
  /** Transfers beside those that last so long that others need not wait for them. */
  readonly lasting: number;
  /** One that so many others have overtaken is not overtaken any more, whatever they say of themselves. */
  readonly overtaken: number;
}

/** From simulation (`npm run bench -- sim`). */
export const UPLOAD_LIMITS: UploadLimits = { active: 5, queued: 6, lasting: 10, overtaken: 8 };

/** What a request says of who sent it. */
export interface UploadRequest {
  /** A reader waits for it. */
  readonly demand: boolean;
  /** Transfers whose bytes it was getting when it asked: its link is shared by so many already. */
  readonly receiving: number;
}

/** A slot that is held until disposed. */
export type UploadSlot = Disposable & Pick<UploadTurn, 'lasts'>;

/** A slot, or a place in the queue until a slot is free. */
export interface UploadTurn {
  /** Whoever gets it is slow and takes little of the link: the next need not wait for it. */
  lasts(): void;
  /** Over: the slot goes to the next, or the place in the queue is free. More than once does nothing. */
  end(): void;
}

interface Waiting {
  readonly rank: number;
  readonly start: () => void;
  overtaken: number;
}

/**
 * The node's upload slots, the queue bounded. Of those that wait, whoever a reader waits for is first, then whoever is getting least
 * at the time: a link that is shared by many already makes each of them slow, and keeps slots at all of them. Else first come, first
 * served. No clock; the simulation runs this very code.
 */
export class UploadSlots {
  readonly #limits: UploadLimits;
  readonly #queue: Waiting[] = [];
  #active = 0;
  #lasting = 0;

  constructor(limits: UploadLimits = UPLOAD_LIMITS) {
    this.#limits = limits;
  }

  get active(): number {
    return this.#active + this.#lasting;
  }

  get queued(): number {
    return this.#queue.length;
  }

  /** undefined = busy, as `enter`. Rejects with the signal's reason. */
  take(request: UploadRequest, signal: AbortSignal): Promise<UploadSlot> | undefined {
    if (signal.aborted) return Promise.reject(signal.reason as Error);
    const { promise, resolve, reject } = Promise.withResolvers<UploadSlot>();
    const leave = () => {
      turn?.end();
      reject(signal.reason as Error);
    };
    signal.addEventListener('abort', leave, { once: true });
    const turn = this.enter(request, ({ end, lasts }) => {
      signal.removeEventListener('abort', leave);
      resolve({ [Symbol.dispose]: end, lasts });
    });
    if (turn !== undefined) return promise;
    signal.removeEventListener('abort', leave);
    return undefined;
  }

  /** `start` when there is a slot, maybe at once. undefined = busy: neither a slot nor a place in the queue is free. */
  enter(request: UploadRequest, start: (turn: UploadTurn) => void): UploadTurn | undefined {
    const isFull = this.#active >= this.#limits.active;
    if (isFull && this.#queue.length >= this.#limits.queued) return undefined;
    let state: 'waiting' | 'active' | 'lasting' | 'over' = 'waiting';
    const waiting: Waiting = {
      rank: request.demand ? -1 : request.receiving,
      start: () => {
        state = 'active';
        start(turn);
      },
      overtaken: 0,
    };
    const turn: UploadTurn = {
      lasts: () => {
        if (state !== 'active' || this.#lasting >= this.#limits.lasting) return;
        state = 'lasting';
        this.#lasting++;
        this.#next();
      },
      end: () => {
        const before = state;
        state = 'over';
        if (before === 'waiting') this.#queue.splice(this.#queue.indexOf(waiting), 1);
        else if (before === 'lasting') this.#lasting--;
        else if (before === 'active') this.#next();
      },
    };
    if (isFull) this.#queue.push(waiting);
    else {
      this.#active++;
      waiting.start();
    }
    return turn;
  }

  /** A slot that is free is handed on, so that nobody who comes just then overtakes. */
  #next(): void {
    let best = 0;
    for (let i = 1; i < this.#queue.length; i++) if (this.#rank(i) < this.#rank(best)) best = i;
    const [next] = this.#queue.splice(best, 1);
    if (next === undefined) {
      this.#active--;
      return;
    }
    for (const before of this.#queue.slice(0, best)) before.overtaken++;
    next.start();
  }

  #rank(at: number): number {
    const waiting = this.#queue[at];
    if (waiting === undefined) return Infinity;
    return waiting.overtaken >= this.#limits.overtaken ? -2 : waiting.rank;
  }
}
