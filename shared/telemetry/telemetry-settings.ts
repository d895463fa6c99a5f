import { z } from 'zod';
import { optionalAddress, type Settings } from '#shared/config/settings.ts';

/** What every service logs. */
export const logSettings = {
  logLevel: {
    env: 'KINDLING_LOG_LEVEL',
    schema: z.enum(['trace', 'debug', 'info', 'warn', 'error', 'fatal']),
    default: 'info',
    help: 'Least severe level that is logged',
  },
} as const satisfies Settings;

/** Where a service that does not listen otherwise can be watched. */
export const telemetrySettings = {
  metrics: {
    env: 'KINDLING_METRICS',
    schema: optionalAddress('127.0.0.1'),
    help: 'Address (host:port) that serves /metrics and /healthz; none by default',
  },
  ...logSettings,
} as const satisfies Settings;
