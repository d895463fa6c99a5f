import type { DeliverSpan, SpanBytes, SpanRequest } from '../layers/span-source.ts';

interface Call {
  readonly request: SpanRequest;
  readonly deliver: DeliverSpan;
  readonly pending: Set<number>;
  settle(error?: unknown): void;
}

/** What the scheduler waits for from a layer's swarm: which spans, since when, and to whom to hand them. */
export class SwarmCalls {
  readonly #bySpan = new Map<number, Call>();
  readonly #sinceMs = new Map<number, number>();

  get size(): number {
    return this.#bySpan.size;
  }

  has(span: number): boolean {
    return this.#bySpan.has(span);
  }

  spans(): Iterable<number> {
    return this.#bySpan.keys();
  }

  requestOf(span: number): SpanRequest | undefined {
    return this.#bySpan.get(span)?.request;
  }

  sinceMs(span: number): number | undefined {
    return this.#sinceMs.get(span);
  }

  /** Resolves when all spans of the request were delivered or given up; `dropped` hears of those that an abort leaves. */
  add(
    request: SpanRequest,
    deliver: DeliverSpan,
    nowMs: number,
    signal: AbortSignal,
    dropped: (spans: readonly number[]) => void,
  ): Promise<void> {
    signal.throwIfAborted();
    return new Promise<void>((resolve, reject) => {
      const pending = new Set<number>();
      const onAbort = () => {
        const left = [...pending];
        for (const span of left) this.#bySpan.delete(span);
        pending.clear();
        reject(signal.reason as Error);
        dropped(left);
      };
      const call: Call = {
        request,
        deliver,
        pending,
        settle: (error) => {
          signal.removeEventListener('abort', onAbort);
          if (error === undefined) resolve();
          else reject(error as Error);
        },
      };
      for (let span = request.first; span <= request.last; span++) {
        this.giveUp(span);
        pending.add(span);
        this.#bySpan.set(span, call);
        this.#sinceMs.set(span, nowMs);
      }
      signal.addEventListener('abort', onAbort, { once: true });
    });
  }

  /** As DeliverSpan; nothing where nobody waits for it (any more). */
  deliver(span: number, bytes: SpanBytes): Promise<void> | undefined {
    const call = this.#bySpan.get(span);
    if (call === undefined) return undefined;
    this.#bySpan.delete(span);
    this.#sinceMs.delete(span);
    const stored = call.deliver(span, bytes);
    call.pending.delete(span);
    if (call.pending.size === 0) call.settle();
    return stored;
  }

  /** The span does not come from here: its call goes on without it, and the scheduler asks the next source. */
  giveUp(span: number): void {
    const call = this.#bySpan.get(span);
    if (call === undefined) return;
    this.#bySpan.delete(span);
    this.#sinceMs.delete(span);
    call.pending.delete(span);
    if (call.pending.size === 0) call.settle();
  }
}
