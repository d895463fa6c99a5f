import { Counter, Histogram, type Registry } from '#shared/telemetry/metrics.ts';

export class IndexerMetrics {
  readonly events: Counter<'type' | 'outcome'>;
  readonly layers: Counter<'outcome'>;
  readonly contradictions: Counter;
  readonly seconds: Histogram;
  readonly layerBytes: Counter;
  readonly indexBytes: Counter;

  constructor(registry: Registry) {
    const registers = [registry];
    this.events = new Counter({
      name: 'kindling_indexer_events_total',
      help: 'Attempts at events, by type and outcome (done, ignored, failed, rejected)',
      labelNames: ['type', 'outcome'],
      registers,
    });
    this.layers = new Counter({
      name: 'kindling_indexer_layers_total',
      help: 'Layers seen, by outcome (present, built, not-lazy, failed)',
      labelNames: ['outcome'],
      registers,
    });
    this.contradictions = new Counter({
      name: 'kindling_indexer_contradictions_total',
      help: 'Layers whose table of contents says something else than their tar: made by mistake, or to deceive',
      registers,
    });
    this.seconds = new Histogram({
      name: 'kindling_indexer_build_seconds',
      help: 'Time to build and publish the index of a layer',
      buckets: [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000],
      registers,
    });
    this.layerBytes = new Counter({
      name: 'kindling_indexer_layer_bytes_total',
      help: 'Bytes of the layers whose index was built',
      registers,
    });
    this.indexBytes = new Counter({
      name: 'kindling_indexer_index_bytes_total',
      help: 'Bytes of the indexes that were built',
      registers,
    });
  }
}
