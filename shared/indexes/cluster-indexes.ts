import type { Bus } from '#shared/bus/bus.ts';
import { hexOf, type Digest } from '#shared/digest/digest.ts';
import { INDEX_VERSION } from '#shared/layer/index-codec.ts';
import type { IndexRequest, IndexSource } from './index-source.ts';

/** Longer than any index takes; shorter than a start's patience. */
const FIND_MS = 5_000;

/**
 * Layer indexes in the cluster's object store. Who may write there may redefine layers: the credentials of NATS are the
 * guard.
 */
export class ClusterIndexes implements IndexSource {
  readonly #bus: Pick<Bus, 'objects' | 'connected'>;

  constructor(bus: Pick<Bus, 'objects' | 'connected'>) {
    this.#bus = bus;
  }

  /** A start waits for this: without a connection there is none, at once. */
  async find(request: Pick<IndexRequest, 'layer'>, signal: AbortSignal): Promise<Uint8Array | undefined> {
    if (!this.#bus.connected()) return undefined;
    return await this.#bus.objects.get(nameOf(request.layer), AbortSignal.any([signal, AbortSignal.timeout(FIND_MS)]));
  }

  async has(layer: Digest, signal: AbortSignal): Promise<boolean> {
    return await this.#bus.objects.has(nameOf(layer), signal);
  }

  /** An index is the same whoever builds it: one that is there already stays. */
  async publish(layer: Digest, index: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.#bus.objects.put(nameOf(layer), index, signal);
  }

  /** For one that proved damaged; the next event builds it anew. */
  async discard(layer: Digest, signal: AbortSignal): Promise<void> {
    await this.#bus.objects.remove(nameOf(layer), signal);
  }
}

/** With the version of the encoding: old and new agents may run side by side. */
function nameOf(layer: Digest): string {
  return `index-v${INDEX_VERSION}.${hexOf(layer)}`;
}
