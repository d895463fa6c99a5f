import { loadSettings } from '#shared/config/settings.ts';
import type { RegistryClient } from '#shared/registry/registry-client.ts';
import { openRegistryClient, registrySettings } from '#shared/registry/registry-settings.ts';
import { createLogger } from '#shared/telemetry/logger.ts';

/** A client as the environment says; `plainHttp` comes from the command line. Close it in the end. */
export function registryAccess(plainHttp: readonly string[], isVerbose: boolean): RegistryClient {
  // The command may run in an environment with settings of services: they are theirs to check.
  const own = new Set<string>(Object.values(registrySettings).map((setting) => setting.env));
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => own.has(name)));
  const values = loadSettings(registrySettings, env);
  return openRegistryClient(
    { ...values, plainHttpRegistries: [...values.plainHttpRegistries, ...plainHttp] },
    createLogger('cli', isVerbose ? 'debug' : 'warn'),
  );
}
