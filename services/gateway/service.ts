import type { Bus } from '#shared/bus/bus.ts';
import { AllowedRepositories } from '#shared/registry/allowed-repositories.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import { createMetrics } from '#shared/telemetry/metrics.ts';
import type { GatewayValues } from './config.ts';
import { GatewayServer } from './gateway-server.ts';

/** The platform's side of the cluster: takes events over HTTP until `signal` aborts. */
export async function runGateway(
  values: Pick<GatewayValues, 'listen' | 'tokens' | 'registries'>,
  bus: Bus,
  logger: Logger,
  signal: AbortSignal,
): Promise<void> {
  const allowed = new AllowedRepositories(values.registries);
  if (allowed.isEmpty)
    logger.warn('no registry is allowed: every event will be refused; set KINDLING_GATEWAY_REGISTRIES');
  await using server = await GatewayServer.listen(
    { bus, allowed, tokens: values.tokens, metrics: createMetrics(), logger },
    values.listen,
  );
  logger.info({ host: values.listen.host, port: server.port }, 'taking events');
  if (!signal.aborted)
    await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
}
