import type { Digest } from '#shared/digest/digest.ts';
import { BlobPass } from './blob-pass.ts';
import { SILENT_MS, type BlobRanges } from './registry-source.ts';
import type { DeliverSpan, SpanRequest, SpanSource } from './span-source.ts';

/** Passes over blobs at a time: each has a thread, a decoder's window and some spans in memory. */
const PASSES = 6;
/** Of one stream: a second one for what the first has passed already. */
const PASSES_OF_STREAM = 2;

/**
 * Spans from a registry: those that can be had alone from `ranges`, and those that only come one after the other (the inside of a large
 * zstd frame) from passes over the blob that all who want some of them share.
 */
export class StreamSource implements SpanSource {
  readonly name = 'registry';
  readonly #ranges: SpanSource;
  readonly #client: BlobRanges;
  readonly #silentMs: number;
  readonly #passes = new Map<Digest, Set<BlobPass>>();
  readonly #waiting = new Set<() => void>();
  #running = 0;

  constructor(ranges: SpanSource, client: BlobRanges, options: { readonly silentMs?: number } = {}) {
    this.#ranges = ranges;
    this.#client = client;
    this.#silentMs = options.silentMs ?? SILENT_MS;
  }

  async fetch(request: SpanRequest, deliver: DeliverSpan, signal: AbortSignal): Promise<void> {
    const parts: Promise<void>[] = [];
    for (let first = request.first; first <= request.last; ) {
      const stream = request.map.streamOf(first);
      let last = first;
      while (last < request.last && request.map.streamOf(last + 1)?.[0] === stream?.[0]) last++;
      const part = { ...request, first, last };
      parts.push(
        stream === undefined
          ? this.#ranges.fetch(part, deliver, signal)
          : this.#fromStream(part, stream, deliver, signal),
      );
      first = last + 1;
    }
    for (const result of await Promise.allSettled(parts)) if (result.status === 'rejected') throw result.reason;
  }

  rejected(request: SpanRequest, span: number): void {
    this.#ranges.rejected(request, span);
  }

  async #fromStream(
    request: SpanRequest,
    stream: readonly [first: number, last: number],
    deliver: DeliverSpan,
    signal: AbortSignal,
  ): Promise<void> {
    const joined: Promise<void>[] = [];
    let { last } = request;
    // Each pass takes what it has not passed yet, so the last ones first.
    while (last >= request.first) {
      signal.throwIfAborted();
      const pass = this.#passFor(request, stream, last);
      if (pass === undefined) {
        await this.#somethingEnds(signal);
        continue;
      }
      const from = Math.max(request.first, pass.next);
      joined.push(pass.join(from, last, deliver, signal));
      last = from - 1;
    }
    for (const result of await Promise.allSettled(joined)) if (result.status === 'rejected') throw result.reason;
  }

  /** A pass to which `span` is still to come: one that is under way, else a new one; undefined while there may be none. */
  #passFor(
    request: SpanRequest,
    [first, last]: readonly [first: number, last: number],
    span: number,
  ): BlobPass | undefined {
    const known = [...(this.#passes.get(request.layer) ?? [])].filter((pass) => pass.first === first);
    const coming = known.find(({ next }) => next <= span);
    if (coming !== undefined) return coming;
    if (this.#running >= PASSES || known.length >= PASSES_OF_STREAM) return undefined;
    return this.#begin(request, first, last);
  }

  #begin(request: SpanRequest, first: number, last: number): BlobPass {
    const { layer } = request;
    const pass = new BlobPass({ client: this.#client, silentMs: this.#silentMs, request, first, last });
    const passes = this.#passes.get(layer) ?? new Set();
    this.#passes.set(layer, passes.add(pass));
    this.#running++;
    const ended = () => {
      this.#running--;
      passes.delete(pass);
      if (passes.size === 0) this.#passes.delete(layer);
      for (const wake of this.#waiting) wake();
    };
    // Only when it has been joined.
    queueMicrotask(() => void pass.run().then(ended));
    return pass;
  }

  async #somethingEnds(signal: AbortSignal): Promise<void> {
    await new Promise<void>((resolve) => {
      const wake = () => {
        this.#waiting.delete(wake);
        signal.removeEventListener('abort', wake);
        resolve();
      };
      this.#waiting.add(wake);
      signal.addEventListener('abort', wake, { once: true });
    });
  }
}
