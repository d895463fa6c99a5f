import type { Command } from 'commander';
import type { RegistryClient } from '#shared/registry/registry-client.ts';
import { openRegistryClient } from '#shared/registry/open-registry.ts';
import { registrySettings } from '#shared/registry/registry-settings.ts';
import { createLogger } from '#shared/telemetry/logger.ts';
import { collect } from './option-values.ts';
import { ownSettings } from './own-settings.ts';

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

/** A client as the environment and the command line say. Close it in the end. */
export function registryAccess(flags: Pick<RegistryFlags, 'plainHttp' | 'verbose'>): RegistryClient {
  const values = ownSettings(registrySettings);
  return openRegistryClient(
    { ...values, plainHttpRegistries: [...values.plainHttpRegistries, ...flags.plainHttp] },
    createLogger('cli', flags.verbose === true ? 'debug' : 'warn'),
  );
}
