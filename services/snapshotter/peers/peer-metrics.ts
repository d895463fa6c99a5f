import { Counter, Gauge, type Registry } from '#shared/telemetry/metrics.ts';
import { FETCHED_BYTES } from '../layers/layer-statistics.ts';

/** What sharing does; none of it by layer or by node, which would be without bound. */
export class PeerMetrics {
  readonly received: Counter;
  readonly sent: Counter;
  readonly requests: Counter<'outcome'>;
  readonly served: Counter<'outcome'>;
  readonly hedged: Counter;
  readonly badPeers: Counter;
  readonly leases: Counter<'how'>;
  readonly distributor: Counter<'request' | 'outcome'>;
  readonly up: Gauge;
  readonly swarms: Gauge;

  readonly #registry: Registry;

  constructor(registry: Registry) {
    this.#registry = registry;
    const registers = [registry];
    const counter = <L extends string>(name: string, help: string, labelNames: L[]): Counter<L> =>
      new Counter({ name: `kindling_peer_${name}`, help, labelNames, registers });
    this.received = counter('received_bytes_total', 'Bytes of spans that came from peers', []);
    this.sent = counter('sent_bytes_total', 'Bytes of spans that went to peers', []);
    this.requests = counter('requests_total', 'Transfers asked from peers', ['outcome']);
    this.served = counter('served_total', 'Transfers that peers asked for', ['outcome']);
    this.hedged = counter('hedged_total', 'Transfers so slow that another peer was asked as well', []);
    this.badPeers = counter(
      'bad_total',
      'Spans from peers that did not match their digest; their sender is blocked',
      [],
    );
    this.leases = counter('registry_spans_total', 'Spans read from the registry for the swarm', ['how']);
    this.distributor = counter('distributor_requests_total', 'Requests to the distributor', ['request', 'outcome']);
    this.up = new Gauge({ name: 'kindling_peer_distributor_up', help: '1 = the distributor answers', registers });
    this.swarms = new Gauge({
      name: 'kindling_peer_swarms',
      help: 'Layers that are being fetched with others',
      registers,
    });
  }

  async valueOf(counter: Counter): Promise<number> {
    return (await counter.get()).values.reduce((sum, { value }) => sum + value, 0);
  }

  /** What this node has read from registries, as the data path counts it; 0 where nothing counts. */
  async registryBytes(): Promise<number> {
    const fetched = await this.#registry.getSingleMetric(FETCHED_BYTES)?.get();
    const read = fetched?.values.filter(({ labels }) => labels['source'] === 'registry') ?? [];
    return read.reduce((sum, { value }) => sum + value, 0);
  }
}
