import { z } from 'zod';
import { busSettings } from '#shared/bus/open-bus.ts';
import { address, list, type Settings, type Values } from '#shared/config/settings.ts';
import { logSettings } from '#shared/telemetry/telemetry-settings.ts';

export const SETTINGS = {
  ...busSettings,
  listen: {
    env: 'KINDLING_GATEWAY_LISTEN',
    schema: address('127.0.0.1'),
    default: '127.0.0.1:8460',
    help: 'host:port that takes events, and serves /healthz and /metrics',
  },
  tokens: {
    env: 'KINDLING_GATEWAY_TOKENS',
    schema: list.pipe(
      z.array(z.string().min(16, 'at least 16 characters each')).min(1, 'at least one token is needed'),
    ),
    secret: true,
    help: 'Bearer tokens that senders of events may use, separated by commas',
  },
  registries: {
    env: 'KINDLING_GATEWAY_REGISTRIES',
    schema: list,
    help: 'Whose images are acted on: host[:port], host/path, host/path/* or *, separated by commas; none by default',
  },
  ...logSettings,
} as const satisfies Settings;

export type GatewayValues = Values<typeof SETTINGS>;
