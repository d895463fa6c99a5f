import { loadSettings, redacted } from '#shared/config/settings.ts';
import { createLogger } from '#shared/telemetry/logger.ts';
import type { EmbeddedSetup } from './agent-main.ts';
import { runAgent, type AgentStart } from './agent.ts';
import { SETTINGS } from './config.ts';

/**
 * All that can go wrong before the agent touches anything: settings, modules.
 *
 * @returns what runs it
 * @throws SettingsError
 */
export async function prepareAgent(
  setup: EmbeddedSetup | undefined,
): Promise<(start: AgentStart, signal: AbortSignal) => Promise<void>> {
  const values = loadSettings(SETTINGS, process.env, setup?.settings);
  const embedded = setup?.configure(process.env, values.dataDir);
  const logger = createLogger('snapshotter', values.logLevel);
  process.on('unhandledRejection', (error) => {
    logger.fatal({ err: error }, 'A promise was rejected and nobody looked; the agent ends and is started again');
    process.kill(process.pid, 'SIGKILL');
  });
  logger.info({ settings: redacted(SETTINGS, values), node: process.version }, 'Starting');
  return async (start, signal) => await runAgent(values, start, logger, signal, embedded);
}
