import { busSettings, openBus } from '#shared/bus/open-bus.ts';
import type { Bus } from '#shared/bus/bus.ts';
import { loadSettings } from '#shared/config/settings.ts';
import { createLogger } from '#shared/telemetry/logger.ts';

/** The cluster's bus, as the command line or else the environment says; undefined where neither names one. Dispose it. */
export async function clusterAccess(nats: string | undefined): Promise<Bus | undefined> {
  // The command may run in an environment with settings of services: they are theirs to check.
  const own = new Set<string>(Object.values(busSettings).map((setting) => setting.env));
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => own.has(name)));
  const values = loadSettings(busSettings, nats === undefined ? env : { ...env, NATS_URL: nats });
  if (values.natsUrl === undefined) return undefined;
  return await openBus(values, 'kindling-cli', undefined, createLogger('cli', 'error'));
}
