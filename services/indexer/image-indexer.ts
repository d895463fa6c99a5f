import { createHash } from 'node:crypto';
import { RejectedEvent, type Bus, type Delivery } from '#shared/bus/bus.ts';
import { CloudEventError } from '#shared/events/cloud-event.ts';
import {
  fromBus,
  toBus,
  type ImageIndexed,
  type IndexedLayer,
  type KindlingEvent,
} from '#shared/events/image-events.ts';
import { encodeIndexingFailure, INDEXING_FAILED } from '#shared/events/indexing-failure.ts';
import type { ClusterIndexes } from '#shared/indexes/cluster-indexes.ts';
import type { RegistryIndexes } from '#shared/indexes/registry-indexes.ts';
import type { AllowedRepositories } from '#shared/registry/allowed-repositories.ts';
import { formatReference, ImageReferenceError, parseReference, type Reference } from '#shared/registry/reference.ts';
import type { RegistryClient } from '#shared/registry/registry-client.ts';
import { RegistryError } from '#shared/registry/registry-error.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import { resolveImage, type ImageLayer, type PlatformImage } from './image-layers.ts';
import type { IndexerMetrics } from './indexer-metrics.ts';
import type { LayerIndexer } from './layer-indexer.ts';

const SOURCE = 'kindling/indexer';
type Cause = 'image.pushed' | 'function.deployed';

export interface ImageIndexerDeps {
  readonly bus: Bus;
  readonly registry: Pick<RegistryClient, 'manifest' | 'blob'>;
  readonly layers: LayerIndexer;
  readonly indexes: ClusterIndexes;
  /** Where indexes are also pushed to; undefined = nowhere. */
  readonly pushed: RegistryIndexes | undefined;
  readonly allowed: AllowedRepositories;
  readonly platforms: readonly string[];
  readonly metrics: IndexerMetrics;
  readonly logger: Logger;
}

/** What an event about an image asks for: all its layers indexed, then `image.indexed`. Idempotent. */
export class ImageIndexer {
  readonly #deps: ImageIndexerDeps;

  constructor(deps: ImageIndexerDeps) {
    this.#deps = deps;
  }

  async handle(type: Cause, delivery: Delivery): Promise<void> {
    const { metrics, logger } = this.#deps;
    let event: KindlingEvent<Cause> | undefined;
    try {
      event = read(type, delivery.payload);
      const indexed = await this.#index(event, delivery.signal);
      metrics.events.inc({ type, outcome: indexed ? 'done' : 'ignored' });
    } catch (error) {
      const rejected = error instanceof RejectedEvent;
      metrics.events.inc({ type, outcome: rejected ? 'rejected' : 'failed' });
      if (!delivery.signal.aborted) {
        logger.warn({ type, attempt: delivery.attempt, err: error }, 'could not index an image');
        if (event !== undefined) this.#tell(event, codeOf(error), messageOf(error), isPassing(error));
      }
      throw error;
    }
  }

  /** Whoever sent the event by hand may wait for what comes of it. */
  #tell({ source, id }: KindlingEvent<Cause>, code: string, reason: string, passing: boolean): void {
    this.#deps.bus.messages.send(INDEXING_FAILED, encodeIndexingFailure({ source, id, code, reason, passing }));
  }

  async #index(event: KindlingEvent<Cause>, signal: AbortSignal): Promise<boolean> {
    const { bus, allowed, registry, platforms, logger } = this.#deps;
    const reference = referenceOf(event.data.image);
    if (!allowed.allows(reference.repository)) {
      throw new RejectedEvent(
        `Cannot index ${event.data.image}: its repository is not among KINDLING_INDEXER_REGISTRIES`,
      );
    }
    const image = await rejecting(resolveImage(registry, reference, platforms, signal));
    if (image.images.length === 0) {
      logger.info({ image: event.data.image, digest: image.digest }, 'not a container image for our platforms');
      const reason = `Cannot index ${event.data.image}: it is no container image for ${platforms.join(', ')}`;
      this.#tell(event, 'wrong-platform', reason, false);
      return false;
    }
    const layers = await this.#layers(reference, image.images, signal);
    const data: ImageIndexed = {
      image: formatReference(reference),
      digest: image.digest,
      cause: event.type === 'image.pushed' ? 'push' : 'deploy',
      layers,
    };
    // The same for each attempt at the same event, so that a crash between the publish and the acknowledgement is not seen.
    const id = createHash('sha256')
      .update(JSON.stringify([event.source, event.id, image.digest]))
      .digest('hex');
    await bus.events.publish(toBus({ type: 'image.indexed', id, source: SOURCE, data }, new Date()), signal);
    logger.info({ image: data.image, digest: image.digest, layers: layers.length }, 'indexed an image');
    return true;
  }

  async #layers(reference: Reference, images: readonly PlatformImage[], signal: AbortSignal): Promise<IndexedLayer[]> {
    const distinct = new Map<string, ImageLayer>();
    for (const { layers } of images) for (const layer of layers) distinct.set(layer.digest, layer);
    const settled = await Promise.allSettled(
      [...distinct.values()].map((layer) => this.#deps.layers.index(reference, layer, signal)),
    );
    // All are tried before one failure is told: the next attempt finds the others done.
    for (const result of settled) if (result.status === 'rejected') throw asRejection(result.reason);
    const done = settled.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
    for (const image of images) await this.#push(reference, image, done, signal);
    return done;
  }

  /** Nobody waits for it and nobody lacks it: a registry that does not let us push costs a line in the log. */
  async #push(
    reference: Reference,
    image: PlatformImage,
    done: readonly IndexedLayer[],
    signal: AbortSignal,
  ): Promise<void> {
    const { pushed, indexes, logger } = this.#deps;
    if (!pushed) return;
    const states = new Map(done.map((layer) => [layer.layer, layer.state]));
    try {
      const ours = [];
      for (const layer of image.layers) {
        if (states.get(layer.digest) !== 'indexed') continue;
        const bytes = await indexes.find({ layer: layer.digest }, signal);
        if (bytes) ours.push({ layer: layer.digest, bytes });
      }
      if (ours.length > 0) await pushed.publish(reference.repository, image.descriptor, ours, signal);
    } catch (error) {
      signal.throwIfAborted();
      logger.warn(
        { repository: reference.repository, manifest: image.descriptor.digest, err: error },
        'could not push the indexes to the registry',
      );
    }
  }
}

function read(type: Cause, payload: Uint8Array): KindlingEvent<Cause> {
  try {
    return fromBus(type, payload);
  } catch (error) {
    if (error instanceof CloudEventError) throw new RejectedEvent(error.message, { cause: error });
    throw error;
  }
}

function referenceOf(image: string): Reference {
  try {
    return parseReference(image);
  } catch (error) {
    if (error instanceof ImageReferenceError) throw new RejectedEvent(error.message, { cause: error });
    throw error;
  }
}

async function rejecting<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    throw asRejection(error);
  }
}

/** Refused by ourselves or too large for us: so it stays. All else (not there yet, no access yet, down) may change. */
function asRejection(error: unknown): unknown {
  if (!(error instanceof RegistryError) || (error.code !== 'refused' && error.code !== 'too-large')) return error;
  return new RejectedEvent(error.message, { cause: error });
}

function codeOf(error: unknown): string {
  const cause = error instanceof RejectedEvent && error.cause !== undefined ? error.cause : error;
  return cause instanceof Error && 'code' in cause ? String(cause.code).slice(0, 64) : 'failed';
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** What is only so for now says so itself; of all else nobody knows when it would be better. */
function isPassing(error: unknown): boolean {
  return error instanceof Error && 'retryable' in error && error.retryable === true;
}
