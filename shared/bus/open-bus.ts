import { readFile } from 'node:fs/promises';
import { z } from 'zod';
import { bytes, integer, optionalText, type Settings, type Values } from '#shared/config/settings.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import type { Bus } from './bus.ts';

/** Every service that uses the bus has these among its settings. */
export const busSettings = {
  natsUrl: {
    env: 'NATS_URL',
    schema: z
      .string()
      .regex(
        /^(nats|tls):\/\/[^\s,]+(,(nats|tls):\/\/[^\s,]+)*$/,
        'nats://host:port or tls://host:port, several separated by commas',
      )
      .optional(),
    help: 'NATS servers of the cluster; without them everything runs in one process',
    secret: true,
  },
  natsCredentials: { env: 'NATS_CREDENTIALS', schema: optionalText, help: 'path of a NATS credentials file' },
  natsReplicas: {
    env: 'KINDLING_NATS_REPLICAS',
    schema: integer.pipe(z.number().min(1).max(5)),
    default: '1',
    help: 'copies that the NATS servers keep of events and layer indexes',
  },
  objectBytes: {
    env: 'KINDLING_INDEX_STORE_BYTES',
    schema: bytes,
    default: '1G',
    unit: 'bytes',
    help: 'space for layer indexes; when it is short the oldest are dropped. In NATS: as it was first set up',
  },
} as const satisfies Settings;

/** `directory`: where the in-process bus keeps its state; undefined = in memory. */
export async function openBus(
  values: Values<typeof busSettings>,
  clientName: string,
  directory: string | undefined,
  logger: Logger,
): Promise<Bus> {
  // Each is loaded only where it is used: the agent reads these settings too, and readers may wait for it.
  if (values.natsUrl === undefined) {
    const { LocalBus } = await import('./local-bus.ts');
    return new LocalBus(directory, values);
  }
  const { NatsBus } = await import('./nats-bus.ts');
  return new NatsBus({
    url: values.natsUrl,
    clientName,
    logger,
    replicas: values.natsReplicas,
    objectBytes: values.objectBytes,
    ...(values.natsCredentials === undefined ? {} : { credentials: await readFile(values.natsCredentials) }),
  });
}
