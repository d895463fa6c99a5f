import { createLogger } from '#shared/telemetry/logger.ts';
import { loadSettings, redacted, SettingsError, type Settings } from '#shared/config/settings.ts';
import { SETTINGS } from './config.ts';
import type { EmbeddedServices } from './embedded-services.ts';
import { connectKeeper } from './keeper/keeper-link.ts';

/** EX_CONFIG of sysexits.h: the keeper does not start us again with the same settings. */
const EXIT_CONFIG = 78;

export interface EmbeddedSetup {
  /** Settings of the embedded services, so that they are not taken for misspelt ones of ours. */
  readonly settings: Settings;
  /** @throws SettingsError */
  configure(env: Readonly<Record<string, string | undefined>>, dataDir: string): EmbeddedServices;
}

/** The process of the agent: settings, logger, signals, and how it ends. */
export async function agentMain(setup?: EmbeddedSetup): Promise<void> {
  const link = connectKeeper();
  const stop = new AbortController();
  for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, () => stop.abort(new Error(name)));
  // The terminal of whoever started the keeper may go; a daemon has nothing to reload on it.
  process.on('SIGHUP', () => {});
  link?.lost.addEventListener('abort', () => stop.abort(link.lost.reason));

  try {
    const values = loadSettings(SETTINGS, process.env, setup?.settings);
    const embedded = setup?.configure(process.env, values.dataDir);
    const logger = createLogger('snapshotter', values.logLevel);
    process.on('unhandledRejection', (error) => {
      logger.fatal({ err: error }, 'A promise was rejected and nobody looked; the agent ends and is started again');
      process.kill(process.pid, 'SIGKILL');
    });
    logger.info({ settings: redacted(SETTINGS, values), node: process.version }, 'Starting');
    // After the settings, so that a mistake in them is said at once.
    const { runAgent } = await import('./agent.ts');
    try {
      await runAgent(values, link, logger, stop.signal, embedded);
    } catch (error) {
      if (!stop.signal.aborted) throw error;
    }
    await link?.leave();
  } catch (error) {
    process.stderr.write(
      `${error instanceof SettingsError ? error.message : String(error instanceof Error ? error.stack : error)}\n`,
    );
    if (error instanceof SettingsError) process.exit(EXIT_CONFIG);
    if (link === undefined) process.exit(1);
    // Reads on /dev/fuse that wait in libuv's pool would keep an ordinary exit waiting.
    process.kill(process.pid, 'SIGKILL');
  }
}
