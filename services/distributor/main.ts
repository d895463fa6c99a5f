import { openBus } from '#shared/bus/open-bus.ts';
import { loadSettings, redacted, SettingsError } from '#shared/config/settings.ts';
import { openRegistryClient } from '#shared/registry/open-registry.ts';
import { createLogger } from '#shared/telemetry/logger.ts';
import { createMetrics, serveMetrics } from '#shared/telemetry/metrics.ts';
import { SETTINGS } from './config.ts';
import { runDistributor } from './service.ts';

/** EX_CONFIG of sysexits.h: starting again with the same settings is no use. */
const EXIT_CONFIG = 78;

const stop = new AbortController();
for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => stop.abort());

try {
  const values = loadSettings(SETTINGS, process.env);
  if (values.natsUrl === undefined)
    throw new SettingsError('Cannot start: a distributor of its own needs NATS_URL, to reach the nodes');
  const logger = createLogger('distributor', values.logLevel);
  logger.info(redacted(SETTINGS, values), 'starting');
  const metrics = createMetrics();
  await using bus = await openBus(values, 'kindling-distributor', undefined, logger);
  const registry = openRegistryClient(values, logger);
  const http =
    values.metrics === undefined ? undefined : await serveMetrics(metrics, values.metrics, () => bus.connected());
  try {
    await runDistributor(values, { bus, registry, metrics, logger }, stop.signal);
  } finally {
    http?.close();
    await registry.close();
  }
} catch (error) {
  console.error(error instanceof SettingsError ? error.message : error);
  process.exitCode = error instanceof SettingsError ? EXIT_CONFIG : 1;
}
