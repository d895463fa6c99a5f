import { flushCompileCache } from 'node:module';
import { loadZod } from '#shared/config/load-zod.ts';
import type { Settings } from '#shared/config/settings.ts';
import { dataFolderOf } from './data-folder.ts';
import type { EmbeddedServices } from './embedded-services.ts';
import { openFirstReads, type FirstReads } from './first-reads.ts';
import { connectKeeper, type KeeperLink } from './keeper/keeper-link.ts';
import { loadInParts } from './load-in-parts.ts';

/** EX_CONFIG of sysexits.h: the keeper does not start us again with the same settings. */
const EXIT_CONFIG = 78;

/** The larger parts of what the agent takes to serve readers, in the order of their use. */
const READERS_PARTS = [
  loadZod,
  () => import('./config.ts'),
  () => import('#shared/telemetry/logger.ts'),
  () => import('#shared/telemetry/metrics.ts'),
  () => import('#shared/registry/open-registry.ts'),
  () => import('./agent-start.ts'),
] as const;

export interface EmbeddedSetup {
  /** Settings of the embedded services, so that they are not taken for misspelt ones of ours. */
  readonly settings: Settings;
  /** @throws SettingsError */
  configure(env: Readonly<Record<string, string | undefined>>, dataDir: string): EmbeddedServices;
}

/**
 * The process of the agent: settings, logger, signals, and how it ends. Where readers wait for it, they come before all of that.
 *
 * @param loadEmbedded Loads the services that this process has beside the agent.
 */
export async function agentMain(loadEmbedded?: () => Promise<EmbeddedSetup>): Promise<void> {
  const link = connectKeeper();
  if (link?.turn === 'compile') return await compileModules(loadEmbedded);
  const stop = new AbortController();
  for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, () => stop.abort(new Error(name)));
  // The terminal of whoever started the keeper may go; a daemon has nothing to reload on it.
  process.on('SIGHUP', () => {});
  // An ordinary exit may wait for ever for the reads on /dev/fuse that sit in libuv's pool.
  process.on('uncaughtException', (error) => {
    sayLast('Unexpected', error);
    process.kill(process.pid, 'SIGKILL');
  });
  link?.lost.addEventListener('abort', () => stop.abort(link.lost.reason));

  let first: FirstReads | undefined;
  try {
    if (link?.turn === 'next') first = await serveFirst(link, stop.signal);
    if (first === undefined) await loadZod();
    else await loadInParts(READERS_PARTS);
    const { prepareAgent } = await import('./agent-start.ts');
    const run = await prepareAgent(await loadEmbedded?.());
    // A version that does not load is to be refused before it serves.
    if (link?.turn === 'standby') await import('./node-services.ts');
    try {
      // Until the keeper says so, another agent holds the session, the database, the sockets and the caches.
      await link?.waitForGo(stop.signal);
      if (link?.turn === 'standby') first = await serveFirst(link, stop.signal);
      await run({ link, first }, stop.signal);
    } catch (error) {
      if (!stop.signal.aborted) throw error;
    }
    await link?.leave();
  } catch (error) {
    const isSettings = error instanceof Error && error.name === 'SettingsError';
    sayLast(isSettings ? '' : 'The agent cannot go on', error);
    if (first !== undefined) process.kill(process.pid, 'SIGKILL');
    if (isSettings) process.exit(EXIT_CONFIG);
    if (link === undefined) process.exit(1);
    // As above.
    process.kill(process.pid, 'SIGKILL');
  }
}

/** A line as the logger's, which may not be loaded; the process is killed next, so it is written at once. */
function sayLast(what: string, error: unknown): void {
  const [message, stack] = error instanceof Error ? [error.message, error.stack] : [String(error), undefined];
  const line = {
    level: 60,
    time: new Date().toISOString(),
    service: 'snapshotter',
    pid: process.pid,
    ...(what === '' ? { msg: message } : { stack, msg: `${what}: ${message}` }),
  };
  process.stderr.write(`${JSON.stringify(line)}\n`);
}

/** For a process of its own: node's compiler of TypeScript, once loaded, stays, with some 15 MiB. */
async function compileModules(loadEmbedded: (() => Promise<EmbeddedSetup>) | undefined): Promise<void> {
  await loadZod();
  await import('./agent-start.ts');
  await import('./node-services.ts');
  await loadEmbedded?.();
  // Those of threads: here they end for want of a job, and are compiled by then.
  await Promise.allSettled([
    import('./layers/layer-worker.ts'),
    import('./layers/stream-worker.ts'),
    import('./layers/decode-worker.ts'),
    import('./snapshots/cover-worker.ts'),
    import('#shared/formats/stream/walk-worker.ts'),
  ]);
  flushCompileCache();
  process.exit();
}

async function serveFirst(link: KeeperLink, signal: AbortSignal): Promise<FirstReads | undefined> {
  return link.fuse && (await openFirstReads(link.fuse, dataFolderOf(process.env), signal));
}
