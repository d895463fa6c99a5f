import type { Values } from '#shared/config/settings.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import { DockerCredentials } from './docker-credentials.ts';
import { RegistryClient } from './registry-client.ts';
import type { registrySettings } from './registry-settings.ts';

/** The one client of a process. */
export function openRegistryClient(
  values: Values<typeof registrySettings>,
  logger: Logger,
  allowHosts?: readonly string[],
): RegistryClient {
  return new RegistryClient({
    credentials: new DockerCredentials(values.dockerConfig || undefined),
    mirrorsDir: values.registryMirrors || undefined,
    plainHttpHosts: values.plainHttpRegistries,
    allowHosts,
    logger,
  });
}
