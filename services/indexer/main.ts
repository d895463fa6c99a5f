import { openBus } from '#shared/bus/open-bus.ts';
import { loadSettings, redacted, SettingsError } from '#shared/config/settings.ts';
import { buildFromRegistry } from '#shared/indexes/build-from-registry.ts';
import { openRegistryClient } from '#shared/registry/open-registry.ts';
import { createLogger } from '#shared/telemetry/logger.ts';
import { createMetrics, serveMetrics } from '#shared/telemetry/metrics.ts';
import { SETTINGS } from './config.ts';
import { runIndexer } from './service.ts';

/** EX_CONFIG of sysexits.h: starting again with the same settings is no use. */
const EXIT_CONFIG = 78;

const stop = new AbortController();
for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => stop.abort());

try {
  const values = loadSettings(SETTINGS, process.env);
  if (values.natsUrl === undefined) {
    throw new SettingsError('Cannot start: an indexer of its own needs NATS_URL, to reach the other services');
  }
  const logger = createLogger('indexer', values.logLevel);
  logger.info(redacted(SETTINGS, values), 'starting');
  await using closing = new AsyncDisposableStack();
  const bus = closing.use(await openBus(values, 'kindling-indexer', undefined, logger));
  const registry = openRegistryClient(values, logger);
  closing.defer(async () => await registry.close());
  const metrics = createMetrics();
  if (values.metrics) {
    const server = await serveMetrics(metrics, values.metrics, () => bus.connected());
    closing.defer(() => void server.close());
  }
  const build = buildFromRegistry.bind(undefined, registry);
  await runIndexer(values, { bus, registry, build, metrics, logger }, stop.signal);
} catch (error) {
  console.error(error instanceof SettingsError ? error.message : error);
  process.exitCode = error instanceof SettingsError ? EXIT_CONFIG : 1;
}
