import { createHash } from 'node:crypto';
import { RejectedEvent, type Bus, type Delivery, type Subscription } from '#shared/bus/bus.ts';
import { CloudEventError } from '#shared/events/cloud-event.ts';
import { fromBus, subjectOf, type ImageIndexed } from '#shared/events/image-events.ts';
import { AllowedRepositories } from '#shared/registry/allowed-repositories.ts';
import { ImageReferenceError, parseReference } from '#shared/registry/reference.ts';
import { RegistryError } from '#shared/registry/registry-error.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import { Counter, type Registry } from '#shared/telemetry/metrics.ts';

export interface ImageSubscriberDeps {
  readonly bus: Bus;
  /** Of this node, the same after each restart, another one's on no other node. */
  readonly nodeName: string;
  /** Whose images are pulled; see AllowedRepositories. */
  readonly repositories: readonly string[];
  /** Pulls lazily; does nothing where all is there already. */
  readonly pull: (image: string, signal: AbortSignal) => Promise<{ readonly totalMs: number }>;
  readonly metrics: Registry;
  readonly logger: Logger;
}

/** As long as events are kept: a node that was down for less misses nothing, and of a dead one nothing stays. */
const INACTIVE_MS = 7 * 24 * 60 * 60 * 1000;
const ACK_WAIT_MS = 60_000;
const RETRY_MS = 2_000;
/** Over some minutes; later events of the image, or a start, pull it anyway. */
const ATTEMPTS = 6;
/** A pull fetches little, but it must not crowd out a start. */
const CONCURRENCY = 2;

/**
 * Gives this node each image that the cluster has indexed, so that at its first start nothing is left to pull. The node's place in
 * the events is durable; a new node begins with all that are kept.
 */
export function subscribeToImages(deps: ImageSubscriberDeps): Subscription {
  const { bus, nodeName, repositories, pull, metrics, logger } = deps;
  const allowed = new AllowedRepositories(repositories);
  const pulls = new Counter({
    name: 'kindling_subscribed_pulls_total',
    help: 'Images that an event told this node to pull, by outcome (pulled, skipped, failed)',
    labelNames: ['outcome'],
    registers: [metrics],
  });
  const handle = async (delivery: Delivery): Promise<void> => {
    const indexed = read(delivery.payload);
    if (!isWanted(indexed, allowed)) {
      pulls.inc({ outcome: 'skipped' });
      return;
    }
    try {
      const { totalMs } = await pull(indexed.image, delivery.signal);
      pulls.inc({ outcome: 'pulled' });
      logger.info(
        { image: indexed.image, digest: indexed.digest, ms: Math.round(totalMs) },
        'pulled an image that was announced',
      );
    } catch (error) {
      if (delivery.signal.aborted) throw error;
      pulls.inc({ outcome: 'failed' });
      logger.warn(
        { image: indexed.image, attempt: delivery.attempt, err: error },
        'could not pull an image that was announced',
      );
      // Deleted since, or not for us: another attempt will not change that.
      if (error instanceof RegistryError && (error.code === 'not-found' || error.code === 'refused')) {
        throw new RejectedEvent(error.message, { cause: error });
      }
      throw error;
    }
  };
  const options = {
    name: `node-${consumerName(nodeName)}`,
    subject: subjectOf('image.indexed'),
    concurrency: CONCURRENCY,
    maxAttempts: ATTEMPTS,
    inactiveMs: INACTIVE_MS,
    ackWaitMs: ACK_WAIT_MS,
    retryMs: RETRY_MS,
    start: 'all',
  } as const;
  return bus.events.consume(options, handle);
}

function read(payload: Uint8Array): ImageIndexed {
  try {
    return fromBus('image.indexed', payload).data;
  } catch (error) {
    if (error instanceof CloudEventError) throw new RejectedEvent(error.message, { cause: error });
    throw error;
  }
}

/** What was pushed under no name is part of something else (a platform of an index); nobody starts it by itself. */
function isWanted(indexed: ImageIndexed, allowed: AllowedRepositories): boolean {
  try {
    const reference = parseReference(indexed.image);
    return allowed.allows(reference.repository) && (reference.tag !== undefined || indexed.cause === 'deploy');
  } catch (error) {
    if (error instanceof ImageReferenceError) throw new RejectedEvent(error.message, { cause: error });
    throw error;
  }
}

/** Host names have dots, which mean something in NATS; the hash keeps `a.b` and `a-b` apart. */
function consumerName(nodeName: string): string {
  if (/^[A-Za-z0-9_-]{1,100}$/.test(nodeName)) return nodeName;
  const hash = createHash('sha256').update(nodeName).digest('hex').slice(0, 8);
  return `${nodeName.replaceAll(/[^A-Za-z0-9_-]/g, '-').slice(0, 80)}-${hash}`;
}
