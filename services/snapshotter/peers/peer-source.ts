import type { Digest } from '#shared/digest/digest.ts';
import { DISTRIBUTION_LIMITS, type NodeRecord } from '#shared/distribution/messages.ts';
import { isOfNodeOnly } from '../layers/layer-record.ts';
import type { DeliverSpan, FetchPriority, SpanRequest, SpanSource } from '../layers/span-source.ts';
import { Swarm, type SwarmDeps } from './swarm.ts';

type Expected = Pick<SpanRequest, 'layer' | 'map' | 'origins'>;

const MiB = 1024 * 1024;
/** Spans for readers of other nodes at a time. */
const HURRIED = 4;
/** Layers that are fetched together with others at a time; each has a few connections. Further ones come from the registry. */
const SWARMS = 256;
/** Of these, so many of layers that are only expected to be read: nodes may be given hundreds of images at once. */
const EXPECTED = 128;

/**
 * Spans from other nodes, and from the registry what this node is to read there for all of them. What is not
 * delivered as `payload` has come from the registry.
 */
export class PeerSource implements SpanSource {
  readonly name = 'peer';
  readonly #swarms = new Map<Digest, Swarm>();
  readonly #deps: Omit<SwarmDeps, 'idle'>;
  #hurried = 0;
  #closed = false;

  constructor(deps: Omit<SwarmDeps, 'idle'>) {
    this.#deps = deps;
  }

  /** Whole: what is taken next is chosen among all that is wanted. Only while there is somebody to share with. */
  get runBytes(): Partial<Record<FetchPriority, number>> {
    return this.#deps.link.up ? { prefetch: 1024 * MiB } : {};
  }

  async fetch(request: SpanRequest, deliver: DeliverSpan, signal: AbortSignal): Promise<void> {
    const { link, registry } = this.#deps;
    if (isOfNodeOnly(request.map)) {
      await registry.fetch(request, deliver, signal);
      return;
    }
    await link.settled();
    const swarm = this.#swarms.get(request.layer) ?? this.#open(request);
    await (swarm ?? registry).fetch(request, deliver, signal);
  }

  /** Joins those who share the layer, so that the first reader does not wait for that. */
  expected(target: Expected): void {
    if (isOfNodeOnly(target.map)) return;
    const known = this.#swarms.get(target.layer);
    const swarm = known ?? (this.#swarms.size < EXPECTED ? this.#open(target) : undefined);
    swarm?.expected(target.origins);
  }

  urgent(request: SpanRequest, span: number): void {
    this.#swarms.get(request.layer)?.urgent(span);
  }

  rejected(request: SpanRequest, span: number): void {
    this.#swarms.get(request.layer)?.rejected(span);
  }

  arriving(layer: Digest, span: number): boolean {
    return this.#swarms.get(layer)?.arriving(span) === true;
  }

  /**
   * A reader of another node waits for what this one reads for all: until the signal it is as urgent as though it were read here. Only
   * so much at a time, so that those who read here do not wait for others.
   */
  demanded(layer: Digest, span: number, until: AbortSignal): void {
    if (this.#hurried >= HURRIED || this.#swarms.get(layer)?.reads(span) !== true) return;
    this.#hurried++;
    // Whether it comes is seen by whoever waits for it.
    void this.#deps.holder
      .hurry(layer, span, until)
      .catch(() => undefined)
      .finally(() => this.#hurried--);
  }

  followed(layer: Digest, by: NodeRecord): void {
    this.#swarms.get(layer)?.followed(by);
  }

  async close(): Promise<void> {
    this.#closed = true;
    await Promise.all(Array.from(this.#swarms.values(), async (swarm) => await swarm.close()));
    this.#swarms.clear();
  }

  #open({ layer, map, origins }: Expected): Swarm | undefined {
    const { link, metrics } = this.#deps;
    if (!link.up || this.#closed || this.#swarms.size >= SWARMS) return undefined;
    if (map.spanCount > DISTRIBUTION_LIMITS.spans || origins.length === 0) return undefined;
    const swarm = new Swarm(layer, map, {
      ...this.#deps,
      idle: (ended) => {
        if (this.#swarms.get(ended.layer) === ended) this.#swarms.delete(ended.layer);
        metrics.swarms.set(this.#swarms.size);
        void ended.close();
      },
    });
    this.#swarms.set(layer, swarm);
    metrics.swarms.set(this.#swarms.size);
    return swarm;
  }
}
