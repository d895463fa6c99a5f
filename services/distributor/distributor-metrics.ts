import { Counter, Gauge, Histogram, type Registry } from '#shared/telemetry/metrics.ts';

export class DistributorMetrics {
  readonly requests: Counter<'kind' | 'outcome'>;
  readonly seconds: Histogram<'kind'>;
  readonly leases: Counter<'how'>;
  readonly lostNodes: Counter;
  readonly forgotten: Counter;
  readonly garbage: Counter;
  readonly reports: Counter<'outcome'>;
  readonly nodes: Gauge;
  readonly suspects: Gauge;

  constructor(registry: Registry) {
    const registers = [registry];
    this.requests = new Counter({
      name: 'kindling_distributor_requests_total',
      help: 'Messages of nodes',
      labelNames: ['kind', 'outcome'],
      registers,
    });
    this.seconds = new Histogram({
      name: 'kindling_distributor_request_seconds',
      help: 'Time from a message to its answer, or to when it was taken in',
      labelNames: ['kind'],
      buckets: [0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1],
      registers,
    });
    this.leases = new Counter({
      name: 'kindling_distributor_leases_total',
      help: 'Spans that a node was told to read from the registry: in turn, or since it asked for the span',
      labelNames: ['how'],
      registers,
    });
    this.lostNodes = new Counter({
      name: 'kindling_distributor_lost_nodes_total',
      help: 'Nodes that have gone without saying so',
      registers,
    });
    this.forgotten = new Counter({
      name: 'kindling_distributor_forgotten_total',
      help: 'Times that the directory was found empty',
      registers,
    });
    this.garbage = new Counter({
      name: 'kindling_distributor_garbage_total',
      help: 'Times that values were found in Redis that no distributor has written so, and were deleted',
      registers,
    });
    this.reports = new Counter({
      name: 'kindling_distributor_reports_total',
      help: 'Reports of nodes that another has sent wrong bytes',
      labelNames: ['outcome'],
      registers,
    });
    this.suspects = new Gauge({
      name: 'kindling_distributor_suspects',
      help: 'Nodes that several others have reported: they are chosen last',
      registers,
    });
    this.nodes = new Gauge({ name: 'kindling_distributor_nodes', help: 'Nodes that are there', registers });
  }
}
