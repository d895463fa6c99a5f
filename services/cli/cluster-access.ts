import { busSettings, openBus } from '#shared/bus/open-bus.ts';
import type { Bus } from '#shared/bus/bus.ts';
import { createLogger } from '#shared/telemetry/logger.ts';
import { ownSettings } from './own-settings.ts';

/** The cluster's bus, as the command line or else the environment says; undefined where neither names one. Dispose it. */
export async function clusterAccess(nats: string | undefined): Promise<Bus | undefined> {
  const values = ownSettings(busSettings, { NATS_URL: nats });
  if (values.natsUrl === undefined) return undefined;
  return await openBus(values, 'kindling-cli', undefined, createLogger('cli', 'error'));
}
