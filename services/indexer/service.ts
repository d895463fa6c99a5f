import { subjectOf } from '#shared/events/image-events.ts';
import { ClusterIndexes } from '#shared/indexes/cluster-indexes.ts';
import { RegistryIndexes } from '#shared/indexes/registry-indexes.ts';
import { AllowedRepositories } from '#shared/registry/allowed-repositories.ts';
import { formatPlatform, hostPlatform } from '#shared/registry/platform.ts';
import type { RegistryClient } from '#shared/registry/registry-client.ts';
import type { ServiceParts } from '#shared/service/service-main.ts';
import { stopped } from '#shared/service/stopped.ts';
import type { IndexerValues } from './config.ts';
import { ImageIndexer } from './image-indexer.ts';
import type { BuildIndex } from './index-build.ts';
import { IndexerMetrics } from './indexer-metrics.ts';
import { LayerIndexer, type LayerIndexerDeps } from './layer-indexer.ts';
import { Slots } from './slots.ts';

export interface IndexerDeps extends ServiceParts {
  readonly registry: RegistryClient;
  readonly build: BuildIndex;
  /** See LayerIndexerDeps. */
  readonly check?: LayerIndexerDeps['check'];
}

/** A handler that died with its process is noticed after this. */
const ACK_WAIT_MS = 10_000;
const RETRY_MS = 2_000;
/** All indexers share one name; it is kept as long as the events are. */
const INACTIVE_MS = 7 * 24 * 60 * 60 * 1000;

/** Builds indexes as events ask for them, until `signal` aborts; what is unfinished then is done by another. */
export async function runIndexer(
  values: Pick<IndexerValues, 'registries' | 'platforms' | 'events' | 'builds' | 'attempts' | 'pushIndexes'>,
  deps: IndexerDeps,
  signal: AbortSignal,
): Promise<void> {
  const { bus, registry, build, logger } = deps;
  const metrics = new IndexerMetrics(deps.metrics);
  const indexes = new ClusterIndexes(bus);
  const layers = new LayerIndexer({
    indexes,
    claims: bus.claims,
    build,
    check: deps.check,
    slots: new Slots(values.builds),
    metrics,
    logger,
  });
  const images = new ImageIndexer({
    bus,
    registry,
    layers,
    indexes,
    // Ours are pushed anywhere; what is found there is only believed where the agents are told so.
    pushed: values.pushIndexes ? new RegistryIndexes(registry, new AllowedRepositories([])) : undefined,
    allowed: new AllowedRepositories(values.registries),
    platforms: values.platforms.length > 0 ? values.platforms : [formatPlatform(hostPlatform())],
    metrics,
    logger,
  });
  await using closing = new AsyncDisposableStack();
  for (const type of ['image.pushed', 'function.deployed'] as const) {
    const options = {
      name: `indexer-${type.replaceAll('.', '-')}`,
      subject: subjectOf(type),
      concurrency: values.events,
      maxAttempts: values.attempts,
      inactiveMs: INACTIVE_MS,
      ackWaitMs: ACK_WAIT_MS,
      retryMs: RETRY_MS,
      start: 'all',
    } as const;
    closing.use(bus.events.consume(options, async (delivery) => await images.handle(type, delivery)));
  }
  logger.info('taking events');
  await stopped(signal);
}
