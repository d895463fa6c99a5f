import { openBus } from '#shared/bus/open-bus.ts';
import { loadSettings, redacted, SettingsError } from '#shared/config/settings.ts';
import { createLogger } from '#shared/telemetry/logger.ts';
import { SETTINGS } from './config.ts';
import { runGateway } from './service.ts';

/** EX_CONFIG of sysexits.h: starting again with the same settings is no use. */
const EXIT_CONFIG = 78;

const stop = new AbortController();
for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => stop.abort());

try {
  const values = loadSettings(SETTINGS, process.env);
  if (values.natsUrl === undefined)
    throw new SettingsError('Cannot start: a gateway of its own needs NATS_URL, to reach the other services');
  const logger = createLogger('gateway', values.logLevel);
  logger.info(redacted(SETTINGS, values), 'starting');
  await using bus = await openBus(values, 'kindling-gateway', undefined, logger);
  await runGateway(values, bus, logger, stop.signal);
} catch (error) {
  console.error(error instanceof SettingsError ? error.message : error);
  process.exitCode = error instanceof SettingsError ? EXIT_CONFIG : 1;
}
