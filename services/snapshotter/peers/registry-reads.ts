import type { Digest } from '#shared/digest/digest.ts';
import type { SpanMap } from '#shared/layer/span-map.ts';
import type { SpanBytes } from '../layers/span-source.ts';
import type { SpanPicker } from './span-picker.ts';
import { StreamTurns } from './stream-turns.ts';
import type { SwarmCalls } from './swarm-calls.ts';
import type { SwarmDeps } from './swarm.ts';

/** A transfer from a peer or a read from the registry. */
export interface Work {
  readonly missing: Set<number>;
  readonly abort: AbortController;
}

export interface RegistryReadsOptions {
  readonly layer: Digest;
  readonly map: SpanMap;
  readonly deps: Pick<SwarmDeps, 'registry' | 'outbox' | 'metrics' | 'rates' | 'logger' | 'claims' | 'link'>;
  readonly calls: SwarmCalls;
  readonly picker: SpanPicker<string>;
  /** All that is under way; reads are added while they last. */
  readonly works: Set<Work>;
  /** When something of the layer came last, or was wanted first. */
  readonly progressMs: () => number;
  readonly delivered: (span: number, bytes: SpanBytes) => Promise<void> | undefined;
  readonly giveUp: (span: number) => void;
  readonly ended: () => void;
  readonly stopping: AbortSignal;
}

/** What this node reads of a layer from the registry. */
export class RegistryReads {
  readonly #options: RegistryReadsOptions;
  readonly #reading = new Set<number>();
  readonly #streams: StreamTurns;

  constructor(options: RegistryReadsOptions) {
    this.#options = options;
    const { layer, map, deps, calls, picker, stopping } = options;
    this.#streams = new StreamTurns(map, {
      claims: deps.claims,
      together: () => deps.link.up,
      progressMs: options.progressMs,
      isWanted: (span) => calls.has(span) && !this.#reading.has(span),
      isNear: (span) => picker.copies(span) > 0,
      fetching: (fetching) => deps.outbox.say(layer, map.spanCount, { fetching }),
      elsewhere: (released) => deps.outbox.say(layer, map.spanCount, { released }),
      stopping,
    });
  }

  get size(): number {
    return this.#reading.size;
  }

  has(span: number): boolean {
    return this.#reading.has(span);
  }

  spans(): Iterable<number> {
    return this.#reading;
  }

  /** Another node reads the span, as far as is known: it must not be chosen to be read here now. */
  isElsewhere(span: number): boolean {
    return this.#streams.isElsewhere(span);
  }

  /**
   * Reads spans, those that only come in a stream together with all of it that is wanted. What fails is left to the scheduler, whose
   * next source is the registry.
   */
  async read(spans: readonly number[], how: string): Promise<void> {
    await this.#streams.read(spans, async (part) => await this.#read(part, how));
  }

  /** Of a stream until what has come is verified: whoever waits for that would else take the turn, and read all of it again. */
  async #read(spans: readonly number[], how: string): Promise<void> {
    const { layer, map, deps, calls, picker, works } = this.#options;
    const { registry, outbox, metrics, rates, logger } = deps;
    const [first] = spans;
    const last = spans.at(-1);
    const request = first === undefined ? undefined : calls.requestOf(first);
    if (request === undefined || first === undefined || last === undefined) return;
    metrics.leases.inc({ how }, spans.length);
    const work: Work = { missing: new Set(spans), abort: new AbortController() };
    const startMs = performance.now();
    const isStream = map.streamOf(first) !== undefined;
    const storing: Promise<void>[] = [];
    let bytesRead = 0;
    works.add(work);
    for (const span of spans) {
      picker.reserve(span);
      this.#reading.add(span);
    }
    try {
      await registry.fetch(
        { ...request, first, last },
        (span, bytes) => {
          work.missing.delete(span);
          this.#reading.delete(span);
          bytesRead += map.payloadLength(span);
          const stored = this.#options.delivered(span, bytes);
          if (isStream && stored !== undefined) storing.push(stored);
          return stored;
        },
        work.abort.signal,
      );
      // A stream goes as fast as it is taken: that tells nothing of the registry.
      if (!isStream) rates.registryTook(bytesRead, performance.now() - startMs);
    } catch (error) {
      if (!work.abort.signal.aborted) {
        rates.registryFailed();
        logger.debug({ err: error, layer, first, last }, 'Cannot read from the registry');
      }
    } finally {
      works.delete(work);
      for (const span of work.missing) this.#reading.delete(span);
      if (work.missing.size > 0) {
        outbox.say(layer, map.spanCount, { released: [...work.missing] });
        for (const span of work.missing) this.#options.giveUp(span);
      }
      this.#options.ended();
    }
    await Promise.allSettled(storing);
  }
}
