import { z } from 'zod';
import { busSettings } from '#shared/bus/open-bus.ts';
import { list, type Settings, type Values } from '#shared/config/settings.ts';
import { registrySettings } from '#shared/registry/registry-settings.ts';
import { telemetrySettings } from '#shared/telemetry/telemetry-settings.ts';

export const SETTINGS = {
  ...busSettings,
  ...registrySettings,
  redisUrl: {
    env: 'REDIS_URL',
    schema: z
      .string()
      .regex(/^rediss?:\/\/[^\s,]+(,rediss?:\/\/[^\s,]+)*$/, 'redis://[user:password@]host:port')
      .optional(),
    secret: true,
    help: 'Redis that the replicas share, or two or more servers of a Redis Cluster, separated by commas; without it there can be only one distributor, and it keeps all in memory',
  },
  registries: {
    env: 'KINDLING_DISTRIBUTOR_REGISTRIES',
    schema: list,
    help: 'Whose layers nodes may share: host[:port], host/path, host/path/* or *, separated by commas; none by default',
  },
  ...telemetrySettings,
} as const satisfies Settings;

export type DistributorValues = Values<typeof SETTINGS>;
