import { z } from 'zod';
import { busSettings } from '#shared/bus/open-bus.ts';
import { list, type Settings, type Values } from '#shared/config/settings.ts';
import { registrySettings } from '#shared/registry/registry-settings.ts';

export const SETTINGS = {
  ...busSettings,
  ...registrySettings,
  redisUrl: {
    env: 'REDIS_URL',
    schema: z
      .string()
      .regex(/^rediss?:\/\/\S+$/, 'redis://[user:password@]host:port')
      .optional(),
    secret: true,
    help: 'Redis that the replicas share; without it there can be only one distributor, and it keeps all in memory',
  },
  registries: {
    env: 'KINDLING_DISTRIBUTOR_REGISTRIES',
    schema: list,
    help: 'Whose layers nodes may share: host[:port], host/path, host/path/* or *, separated by commas; none by default',
  },
  metrics: {
    env: 'KINDLING_METRICS',
    schema: z
      .string()
      .regex(/^[^\s:]*:\d{1,5}$/, 'host:port')
      .optional()
      .transform((text) => {
        if (text === undefined) return undefined;
        const colon = text.lastIndexOf(':');
        return { host: text.slice(0, colon) || '127.0.0.1', port: Number(text.slice(colon + 1)) };
      }),
    help: 'Address (host:port) that serves /metrics and /healthz; none by default',
  },
  logLevel: {
    env: 'KINDLING_LOG_LEVEL',
    schema: z.enum(['trace', 'debug', 'info', 'warn', 'error', 'fatal']),
    default: 'info',
    help: 'Least severe level that is logged',
  },
} as const satisfies Settings;

export type DistributorValues = Values<typeof SETTINGS>;
