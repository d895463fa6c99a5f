import { DISTRIBUTOR_QUEUE, encodeMessage, SUBJECTS } from '#shared/distribution/messages.ts';
import { AllowedRepositories } from '#shared/registry/allowed-repositories.ts';
import type { RegistryClient } from '#shared/registry/registry-client.ts';
import type { ServiceParts } from '#shared/service/service-main.ts';
import { stopped } from '#shared/service/stopped.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import { AdmissionControl } from './admission.ts';
import type { ChunkDirectory } from './chunk-directory.ts';
import type { DistributorValues } from './config.ts';
import { Distributor } from './distributor.ts';
import { DistributorMetrics } from './distributor-metrics.ts';
import { MemoryDirectory } from './memory-directory.ts';
import { RedisDirectory } from './redis-directory.ts';

export interface DistributorServiceDeps extends ServiceParts {
  readonly registry: RegistryClient;
}

const SWEEP_MS = 1_000;

function openDirectory(url: string | undefined, metrics: DistributorMetrics, logger: Logger): ChunkDirectory {
  if (url === undefined) return new MemoryDirectory();
  return new RedisDirectory({ url, logger, onGarbage: () => metrics.garbage.inc() });
}

/** Answers nodes until `signal` aborts. */
export async function runDistributor(
  values: Pick<DistributorValues, 'redisUrl' | 'registries'>,
  deps: DistributorServiceDeps,
  signal: AbortSignal,
): Promise<void> {
  const { bus, registry, logger } = deps;
  await using closing = new AsyncDisposableStack();
  const metrics = new DistributorMetrics(deps.metrics);
  const directory = closing.use(openDirectory(values.redisUrl, metrics, logger));
  const allowed = new AllowedRepositories(values.registries);
  if (allowed.isEmpty) {
    logger.warn('No registry is allowed: nodes will share nothing; set KINDLING_DISTRIBUTOR_REGISTRIES');
  }
  const distributor = new Distributor({
    bus,
    directory,
    admission: new AdmissionControl(registry, allowed),
    registries: values.registries,
    metrics,
    logger,
  });
  closing.defer(() => distributor.idle());

  const timed = async <T>(kind: string, work: () => Promise<T>): Promise<T> => {
    const end = metrics.seconds.startTimer({ kind });
    try {
      const result = await work();
      metrics.requests.inc({ kind, outcome: 'done' });
      return result;
    } catch (error) {
      metrics.requests.inc({ kind, outcome: 'failed' });
      logger.debug({ err: error, kind }, 'Cannot serve a node');
      throw error;
    } finally {
      end();
    }
  };
  const answers: Record<'hello' | 'join' | 'locate' | 'view', (bytes: Uint8Array) => Promise<object>> = {
    hello: (bytes: Uint8Array) => distributor.hello(bytes),
    join: (bytes: Uint8Array) => distributor.join(bytes, signal),
    locate: (bytes: Uint8Array) => distributor.locate(bytes),
    view: (bytes: Uint8Array) => distributor.view(bytes),
  };
  for (const [kind, answer] of Object.entries(answers)) {
    const subject = SUBJECTS[kind as keyof typeof answers];
    const handler = async (bytes: Uint8Array) => encodeMessage(await timed(kind, () => answer(bytes)));
    closing.use(bus.messages.respond(subject, DISTRIBUTOR_QUEUE, handler));
  }
  closing.use(
    bus.messages.subscribe(SUBJECTS.update, DISTRIBUTOR_QUEUE, (bytes) => {
      // Logged and counted where it failed; the node says everything again when it is asked to.
      timed('update', () => distributor.update(bytes)).catch(() => {});
    }),
  );
  let sweeping = false;
  const timer = setInterval(() => {
    if (sweeping) return;
    sweeping = true;
    distributor
      .sweep()
      .catch((error: unknown) => logger.debug({ err: error }, 'Cannot look after the directory'))
      .finally(() => {
        sweeping = false;
      });
  }, SWEEP_MS);
  closing.defer(() => clearInterval(timer));
  logger.info({ redis: values.redisUrl !== undefined, registries: values.registries }, 'Distributing');
  await stopped(signal);
}
