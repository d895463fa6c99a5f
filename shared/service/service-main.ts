import type { Bus } from '#shared/bus/bus.ts';
import { busSettings, openBus } from '#shared/bus/open-bus.ts';
import { loadSettings, redacted, SettingsError, type Settings, type Values } from '#shared/config/settings.ts';
import { createLogger, type Logger } from '#shared/telemetry/logger.ts';
import { createMetrics, serveMetrics, type Registry } from '#shared/telemetry/metrics.ts';
import { logSettings, telemetrySettings } from '#shared/telemetry/telemetry-settings.ts';

/** EX_CONFIG of sysexits.h: starting again with the same settings is no use. */
const EXIT_CONFIG = 78;

export interface ServiceParts {
  readonly bus: Bus;
  readonly metrics: Registry;
  readonly logger: Logger;
}

/**
 * The process of a service that stands by itself: settings, signals, logger, the cluster's bus, and how it ends. It serves
 * `/metrics` and `/healthz` where the service has the setting for it.
 */
export async function serviceMain<T extends Settings>(
  name: string,
  settings: T & typeof busSettings & typeof logSettings,
  run: (values: Values<T>, parts: ServiceParts, signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const stop = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => stop.abort());
  try {
    const values = loadSettings<T>(settings, process.env);
    const common = loadSettings({ ...busSettings, ...logSettings }, process.env, settings);
    if (common.natsUrl === undefined) {
      throw new SettingsError(`Cannot start: the ${name} as a process of its own needs NATS_URL, to reach the others`);
    }
    const logger = createLogger(name, common.logLevel);
    logger.info(redacted<T>(settings, values), 'starting');
    await using closing = new AsyncDisposableStack();
    const bus = closing.use(await openBus(common, `kindling-${name}`, undefined, logger));
    const metrics = createMetrics();
    if ('metrics' in settings) {
      const { metrics: address } = loadSettings(telemetrySettings, process.env, settings);
      const server = address && (await serveMetrics(metrics, address, () => bus.connected()));
      closing.defer(() => void server?.close());
    }
    await run(values, { bus, metrics, logger }, stop.signal);
  } catch (error) {
    console.error(error instanceof SettingsError ? error.message : error);
    process.exitCode = error instanceof SettingsError ? EXIT_CONFIG : 1;
  }
}
