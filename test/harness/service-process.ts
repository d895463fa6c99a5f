import { fileURLToPath } from 'node:url';
import { ServerProcess, isListening } from './server-process.ts';

/**
 * Starts one of our services as an operator does: its `main.ts`, settings in the environment. Ready once it listens at `port`; without one at
 * once (its first work then waits for it).
 */
export async function startService(
  name: 'gateway' | 'indexer' | 'distributor',
  settings: Readonly<Record<string, string>>,
  port: number | undefined,
  signal: AbortSignal,
): Promise<ServerProcess> {
  const env: NodeJS.ProcessEnv = {};
  for (const [key, value] of Object.entries(process.env)) if (!/^(KINDLING_|NATS_|REDIS_)/.test(key)) env[key] = value;
  return await ServerProcess.start(
    {
      name,
      program: process.execPath,
      args: [
        '--disable-warning=ExperimentalWarning',
        fileURLToPath(new URL(`../../services/${name}/main.ts`, import.meta.url)),
      ],
      env: { ...env, ...settings },
      ready: async () => port === undefined || (await isListening({ port })),
    },
    signal,
  );
}
