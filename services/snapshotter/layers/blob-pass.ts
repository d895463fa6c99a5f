import { inMessages } from './blob-messages.ts';
import { BlobThread } from './blob-thread.ts';
import type { DecodeAnswer, DecodeJob } from './decode-worker.ts';
import { NoOriginError, SilentRegistryError, type BlobRanges } from './registry-source.ts';
import type { DeliverSpan, SpanRequest } from './span-source.ts';

const ENTRY = new URL('./decode-worker.ts', import.meta.url);
/** Bytes given to the thread at once: what is smaller costs a message, what is larger keeps a reader on a slow link waiting. */
const MESSAGE_BYTES = 128 * 1024;
/** Spans decoded and not stored yet; each has up to some MiB. */
const SPANS_AHEAD = 3;

interface Call {
  readonly pending: Set<number>;
  readonly deliver: DeliverSpan;
  settle(error?: unknown): void;
}

/**
 * One pass over the part of a blob that can only be decoded from its front: decodes it in a thread of its own and hands each span, as it
 * passes by, to those who want it. Ends when nobody wants anything that is still to come.
 */
export class BlobPass {
  readonly first: number;
  readonly last: number;
  readonly #request: SpanRequest;
  readonly #client: BlobRanges;
  readonly #silentMs: number;
  readonly #wants = new Map<number, Set<Call>>();
  readonly #stop = new AbortController();
  #next: number;

  constructor(options: {
    readonly client: BlobRanges;
    readonly silentMs: number;
    /** Of a span of the stream `first` to `last`. */
    readonly request: SpanRequest;
    readonly first: number;
    readonly last: number;
  }) {
    this.#client = options.client;
    this.#silentMs = options.silentMs;
    this.#request = options.request;
    this.first = options.first;
    this.last = options.last;
    this.#next = options.first;
  }

  /** The span that comes next: those before it have passed. Beyond the last one once the pass is over. */
  get next(): number {
    return this.#stop.signal.aborted ? this.last + 1 : this.#next;
  }

  /**
   * Wants `from` to `to`, which must be still to come. Resolves when all of them were delivered; rejects when the pass fails. Aborting
   * ends this want alone.
   */
  join(from: number, to: number, deliver: DeliverSpan, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    return new Promise<void>((resolve, reject) => {
      const onAbort = () => {
        for (const span of call.pending) this.#forget(span, call);
        call.settle(signal.reason);
        this.#endIdle();
      };
      const call: Call = {
        pending: new Set(),
        deliver,
        settle: (error) => {
          signal.removeEventListener('abort', onAbort);
          if (error === undefined) resolve();
          else reject(error as Error);
        },
      };
      for (let span = from; span <= to; span++) {
        call.pending.add(span);
        const calls = this.#wants.get(span);
        if (calls === undefined) this.#wants.set(span, new Set([call]));
        else calls.add(call);
      }
      signal.addEventListener('abort', onAbort, { once: true });
    });
  }

  /** Reads until all that is wanted has come, from the first of the layer's repositories that gives it. Never rejects. */
  async run(): Promise<void> {
    const { layer, origins } = this.#request;
    let failure: unknown = new NoOriginError(`Cannot fetch ${layer}: no repository is known to have it`);
    for (const { repository } of origins) {
      try {
        await this.#read(repository);
      } catch (error) {
        failure = error;
      }
      if (this.#wants.size === 0) break;
      this.#next = this.first;
    }
    this.#stop.abort(failure);
    const left = new Set([...this.#wants.values()].flatMap((calls) => [...calls]));
    this.#wants.clear();
    for (const call of left) call.settle(failure);
  }

  async #read(repository: string): Promise<void> {
    const { layer, map } = this.#request;
    const silence = new AbortController();
    const ended = Promise.withResolvers<void>();
    const data: Omit<DecodeJob, 'port'> = {
      lengths: Array.from({ length: this.last - this.first + 1 }, (_, at) => map.decodedLength(this.first + at)),
      ahead: SPANS_AHEAD,
    };
    const thread = new BlobThread<DecodeAnswer>(ENTRY, data, (answer) => {
      if (answer.kind === 'ended') ended.resolve();
      else void this.#passes(answer).then(() => thread.say('more'));
    });
    const ends = AbortSignal.any([this.#stop.signal, silence.signal, thread.failed]);
    const onEnd = () => ended.reject(ends.reason);
    ended.promise.catch(() => undefined);
    ends.addEventListener('abort', onEnd, { once: true });
    try {
      // One that follows begins where the last of these ends, or behind it.
      const end = map.blobStart(this.last + 1);
      const blob = this.#client.blobRange(repository, layer, map.blobStart(this.first), end, ends);
      const why = `Cannot read ${layer} from ${repository}: nothing came for ${this.#silentMs} ms`;
      const heard = unlessSilent(blob, this.#silentMs, () => silence.abort(new SilentRegistryError(why)));
      for await (const message of inMessages(heard, MESSAGE_BYTES)) await thread.push(message);
      thread.say('finish');
      await ended.promise;
    } catch (error) {
      this.#stop.signal.throwIfAborted();
      silence.signal.throwIfAborted();
      thread.failed.throwIfAborted();
      throw error;
    } finally {
      ends.removeEventListener('abort', onEnd);
      await thread.close();
    }
    throw new NotInBlobError(`Cannot decode ${layer} from ${repository}: the blob ends early`);
  }

  /** Resolves when whoever wanted the span has stored it. */
  async #passes({ bytes, blobBytes }: DecodeAnswer & { readonly kind: 'span' }): Promise<void> {
    const span = this.#next++;
    const calls = [...(this.#wants.get(span) ?? [])];
    this.#wants.delete(span);
    const stored: (Promise<void> | undefined)[] = [];
    for (const [at, call] of calls.entries()) {
      // The taker may hand its buffer on to a thread.
      const own = at === calls.length - 1 ? bytes : Uint8Array.from(bytes);
      stored.push(call.deliver(span, { form: 'decoded', bytes: own, blobBytes }));
      call.pending.delete(span);
      if (call.pending.size === 0) call.settle();
    }
    await Promise.allSettled(stored);
    this.#endIdle();
  }

  #forget(span: number, call: Call): void {
    const calls = this.#wants.get(span);
    calls?.delete(call);
    if (calls?.size === 0) this.#wants.delete(span);
  }

  #endIdle(): void {
    if (this.#wants.size === 0) this.#stop.abort(new Error('Nobody wants the rest'));
  }
}

export class NotInBlobError extends Error {
  override readonly name = 'NotInBlobError';
  readonly code = 'not-in-blob';
}

/** The same chunks; calls `silent` where the next one takes longer. What the taker takes does not count. */
async function* unlessSilent(
  chunks: AsyncIterable<Uint8Array>,
  silentMs: number,
  silent: () => void,
): AsyncGenerator<Uint8Array> {
  let timer = setTimeout(silent, silentMs);
  try {
    for await (const chunk of chunks) {
      clearTimeout(timer);
      yield chunk;
      timer = setTimeout(silent, silentMs);
    }
  } finally {
    clearTimeout(timer);
  }
}
