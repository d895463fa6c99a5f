import { AllowedRepositories } from '#shared/registry/allowed-repositories.ts';
import type { ServiceParts } from '#shared/service/service-main.ts';
import { stopped } from '#shared/service/stopped.ts';
import type { GatewayValues } from './config.ts';
import { GatewayServer } from './gateway-server.ts';

/** The platform's side of the cluster: takes events over HTTP until `signal` aborts. */
export async function runGateway(
  values: Pick<GatewayValues, 'listen' | 'tokens' | 'registries'>,
  { bus, metrics, logger }: ServiceParts,
  signal: AbortSignal,
): Promise<void> {
  const allowed = new AllowedRepositories(values.registries);
  if (allowed.isEmpty)
    logger.warn('no registry is allowed: every event will be refused; set KINDLING_GATEWAY_REGISTRIES');
  await using server = await GatewayServer.listen(
    { bus, allowed, tokens: values.tokens, metrics, logger },
    values.listen,
  );
  logger.info({ host: values.listen.host, port: server.port }, 'taking events');
  await stopped(signal);
}
