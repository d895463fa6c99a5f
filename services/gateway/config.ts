import { z } from 'zod';
import { busSettings } from '#shared/bus/open-bus.ts';
import { list, type Settings, type Values } from '#shared/config/settings.ts';

const address = z
  .string()
  .regex(/^([^\s:]*|\[[0-9a-f:]+\]):\d{1,5}$/i, 'host:port')
  .transform((text) => {
    const colon = text.lastIndexOf(':');
    return { host: text.slice(0, colon).replaceAll(/[[\]]/g, '') || '127.0.0.1', port: Number(text.slice(colon + 1)) };
  });

export const SETTINGS = {
  ...busSettings,
  listen: {
    env: 'KINDLING_GATEWAY_LISTEN',
    schema: address,
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
  logLevel: {
    env: 'KINDLING_LOG_LEVEL',
    schema: z.enum(['trace', 'debug', 'info', 'warn', 'error', 'fatal']),
    default: 'info',
    help: 'Least severe level that is logged',
  },
} as const satisfies Settings;

export type GatewayValues = Values<typeof SETTINGS>;
