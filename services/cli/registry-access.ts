import type { Command } from 'commander';
import { loadSettings } from '#shared/config/settings.ts';
import type { RegistryClient } from '#shared/registry/registry-client.ts';
import { openRegistryClient } from '#shared/registry/open-registry.ts';
import { registrySettings } from '#shared/registry/registry-settings.ts';
import { createLogger } from '#shared/telemetry/logger.ts';
import { collect } from './option-values.ts';

export interface RegistryFlags {
  readonly plainHttp: readonly string[];
  readonly json?: true;
  readonly verbose?: true;
}

/** The options of a command that talks to registries itself and prints a result. */
export function withRegistryOptions(command: Command): Command {
  return command
    .option(
      '--plain-http <host>',
      'speak plain HTTP to this host[:port] (may be repeated; loopback always)',
      collect,
      [],
    )
    .option('--json', 'print the result as JSON')
    .option('-v, --verbose', 'log requests that are tried again');
}

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
