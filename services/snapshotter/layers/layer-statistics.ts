import type { Digest } from '#shared/digest/digest.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import { Counter, Gauge, Histogram, type Registry } from '#shared/telemetry/metrics.ts';
import type { FailedFetch, FetchedSpan, FetchObserver } from './fetch-target.ts';
import type { FetchPriority, SpanSource } from './span-source.ts';

/** What was fetched for a layer since the agent came up. */
export interface LayerFigures {
  readonly bytesBySource: Readonly<Record<SpanSource['name'], number>>;
  readonly spansBySource: Readonly<Record<SpanSource['name'], number>>;
  /** Spans that a reader had to wait for. */
  readonly demandSpans: number;
  readonly stalls: number;
  readonly stallMs: number;
  readonly errors: number;
}

/** One thing that happened to a layer; a start's waterfall is made of these. Times in ms since the Unix epoch. */
export type TraceEvent =
  | {
      readonly kind: 'fetched';
      readonly seq: number;
      readonly atMs: number;
      readonly layer: Digest;
      readonly span: number;
      readonly source: SpanSource['name'];
      readonly priority: FetchPriority;
      readonly bytes: number;
      readonly waitedMs: number;
    }
  | {
      readonly kind: 'stalled';
      readonly seq: number;
      readonly atMs: number;
      readonly layer: Digest;
      readonly first: number;
      readonly last: number;
      readonly waitedMs: number;
    }
  | {
      readonly kind: 'failed';
      readonly seq: number;
      readonly atMs: number;
      readonly layer: Digest;
      readonly span: number;
      readonly source: SpanSource['name'];
      readonly reason: FailedFetch['reason'];
      readonly final: boolean;
    };

type Unnumbered<T> = T extends TraceEvent ? Omit<T, 'seq' | 'atMs'> : never;

export const FETCHED_BYTES = 'kindling_fetched_bytes_total';
/** Events kept for whoever asks what a start did: a start of the largest test image makes some 500. */
const TRACE_EVENTS = 4096;

type MutableFigures = {
  bytesBySource: Record<SpanSource['name'], number>;
  spansBySource: Record<SpanSource['name'], number>;
  demandSpans: number;
  stalls: number;
  stallMs: number;
  errors: number;
};

/** Counts what the data path does: for metrics, for `status`, and for the waterfall of a start. */
export class LayerStatistics implements FetchObserver {
  readonly #figures = new Map<Digest, MutableFigures>();
  readonly #trace: TraceEvent[] = [];
  readonly #logger: Logger;
  readonly #bytes: Counter<'source' | 'priority'>;
  readonly #spans: Counter<'source' | 'priority'>;
  readonly #failures: Counter<'source' | 'reason'>;
  readonly #readErrors: Counter;
  readonly #stalls: Histogram;
  #seq = 0;

  constructor(options: { readonly metrics: Registry; readonly logger: Logger }) {
    const registers = [options.metrics];
    this.#logger = options.logger;
    this.#bytes = new Counter({
      name: FETCHED_BYTES,
      help: 'Bytes of verified spans, as they came',
      labelNames: ['source', 'priority'],
      registers,
    });
    this.#spans = new Counter({
      name: 'kindling_fetched_spans_total',
      help: 'Verified spans',
      labelNames: ['source', 'priority'],
      registers,
    });
    this.#failures = new Counter({
      name: 'kindling_fetch_failures_total',
      help: 'Spans that a source did not deliver, or delivered wrong',
      labelNames: ['source', 'reason'],
      registers,
    });
    this.#readErrors = new Counter({
      name: 'kindling_read_errors_total',
      help: 'Spans whose readers got an I/O error',
      registers,
    });
    this.#stalls = new Histogram({
      name: 'kindling_read_stall_seconds',
      help: 'How long reads waited for spans that were not here',
      buckets: [0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10],
      registers,
    });
  }

  /** Gauges that are read when somebody looks. */
  watch(
    metrics: Registry,
    state: () => { layers: number; mounted: number; complete: number; diskBytes: number },
  ): void {
    const gauge = (name: string, help: string, value: () => number) =>
      new Gauge({
        name,
        help,
        registers: [metrics],
        collect() {
          this.set(value());
        },
      });
    gauge('kindling_layers', 'Layers on this node', () => state().layers);
    gauge('kindling_layers_mounted', 'Layers that are mounted', () => state().mounted);
    gauge('kindling_layers_complete', 'Layers of which every span is here', () => state().complete);
    gauge('kindling_layer_bytes', 'Bytes that layers occupy on the disk', () => state().diskBytes);
  }

  figures(layer: Digest): LayerFigures {
    return this.#of(layer);
  }

  /** Events after `seq`, oldest first; some may be lost where `seq` is long past. */
  trace(seq: number): readonly TraceEvent[] {
    return this.#trace.filter((event) => event.seq > seq);
  }

  get lastSeq(): number {
    return this.#seq;
  }

  forget(layer: Digest): void {
    this.#figures.delete(layer);
  }

  /** A layer was made, of so many bytes of its blob: its TOC, or all of it. */
  built(layer: Digest, bytes: number): void {
    this.#of(layer).bytesBySource.registry += bytes;
    this.#bytes.inc({ source: 'registry', priority: 'prefetch' }, bytes);
  }

  fetched(event: FetchedSpan): void {
    const { source, priority, bytes, span, waitedMs } = event;
    const figures = this.#of(event.target.layer);
    figures.bytesBySource[source] += bytes;
    figures.spansBySource[source]++;
    if (priority === 'demand') figures.demandSpans++;
    this.#bytes.inc({ source, priority }, bytes);
    this.#spans.inc({ source, priority });
    this.#push({ kind: 'fetched', layer: event.target.layer, span, source, priority, bytes, waitedMs });
  }

  failed(event: FailedFetch): void {
    const { source, reason, span, final, cause } = event;
    const { layer } = event.target;
    this.#of(layer).errors++;
    this.#failures.inc({ source, reason });
    if (final) this.#readErrors.inc();
    const level = final ? 'error' : 'warn';
    this.#logger[level]({ layer, span, source, reason, final, err: cause }, 'Cannot fetch a span');
    this.#push({ kind: 'failed', layer, span, source, reason, final });
  }

  stalled(layer: Digest, first: number, last: number, waitedMs: number): void {
    const figures = this.#of(layer);
    figures.stalls++;
    figures.stallMs += waitedMs;
    this.#stalls.observe(waitedMs / 1000);
    this.#push({ kind: 'stalled', layer, first, last, waitedMs });
  }

  #of(layer: Digest): MutableFigures {
    let figures = this.#figures.get(layer);
    if (figures === undefined) {
      const zero = () => ({ peer: 0, registry: 0 });
      figures = { bytesBySource: zero(), spansBySource: zero(), demandSpans: 0, stalls: 0, stallMs: 0, errors: 0 };
      this.#figures.set(layer, figures);
    }
    return figures;
  }

  #push(event: Unnumbered<TraceEvent>): void {
    this.#trace.push({ ...event, seq: ++this.#seq, atMs: Date.now() });
    // In pieces, so that not every event moves the whole array.
    if (this.#trace.length >= TRACE_EVENTS * 1.25) this.#trace.splice(0, this.#trace.length - TRACE_EVENTS);
  }
}
