import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { SETTINGS as GATEWAY } from '#services/gateway/config.ts';
import { SETTINGS as INDEXER } from '#services/indexer/config.ts';
import type { EmbeddedSetup } from '#services/snapshotter/agent-main.ts';
import { SETTINGS as AGENT } from '#services/snapshotter/config.ts';
import { LocalBus } from '#shared/bus/local-bus.ts';
import { loadSettings, SettingsError, type Settings } from '#shared/config/settings.ts';
import { buildFromRegistry } from '#shared/indexes/build-from-registry.ts';
import { createLogger, type Logger } from '#shared/telemetry/logger.ts';
import { createMetrics } from '#shared/telemetry/metrics.ts';

type Environment = Readonly<Record<string, string | undefined>>;

const RETRY_MS = 5_000;

/** Settings that `kindling up` may be given beside the agent's own. */
// By the names of their variables: services have keys in common.
export const EMBEDDED_SETTINGS: Settings = Object.fromEntries(
  [AGENT, INDEXER, GATEWAY].flatMap((settings) => Object.values(settings)).map((setting) => [setting.env, setting]),
);

/**
 * Whether this node also takes events itself.
 *
 * @throws SettingsError where the cluster's services do that
 */
export function takesEvents(env: Environment): boolean {
  const set = [GATEWAY.tokens.env, GATEWAY.registries.env].filter((name) => (env[name] ?? '') !== '');
  if (set.length === 0) return false;
  if ((env[AGENT.natsUrl.env] ?? '') === '') return true;
  throw new SettingsError(
    `Cannot start: ${set.join(' and ')} make this node take events by itself, but ${AGENT.natsUrl.env} is set: in a cluster the gateway is a service of its own; remove one of the two`,
  );
}

/** Gateway and indexer; events and indexes are kept below the data folder. */
export const EMBEDDED: EmbeddedSetup = {
  settings: EMBEDDED_SETTINGS,
  configure(env, dataDir) {
    const gateway = loadSettings(GATEWAY, env, EMBEDDED_SETTINGS);
    const indexer = loadSettings(INDEXER, env, EMBEDDED_SETTINGS);
    return {
      openBus: () => Promise.resolve(new LocalBus(join(dataDir, 'bus'), indexer)),
      async run({ bus, registry, metrics }, signal) {
        // Loaded after the agent: a start must not wait for them.
        const { runIndexer } = await import('#services/indexer/service.ts');
        const { runGateway } = await import('#services/gateway/service.ts');
        const ends = new AbortController();
        const signals = AbortSignal.any([signal, ends.signal]);
        const build = buildFromRegistry.bind(undefined, registry);
        const logOf = (service: string) => createLogger(service, gateway.logLevel);
        // Its metrics are served where it listens, anew each time.
        const parts = () => ({ bus, metrics: createMetrics(), logger: logOf('gateway') });
        const running = [
          runIndexer(indexer, { bus, registry, build, metrics, logger: logOf('indexer') }, signals),
          untilStopped(() => runGateway(gateway, parts(), signals), logOf('gateway'), signals),
          // One without the other is no use.
        ].map(async (service) => await service.finally(() => ends.abort()));
        await Promise.allSettled(running);
        await Promise.all(running);
      },
    };
  },
};

/** Its port may be taken for a while: an agent that was killed within a call on its own mounts ends only when we have answered it. */
async function untilStopped(run: () => Promise<void>, logger: Logger, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    try {
      await run();
    } catch (error) {
      logger.error({ err: error, againMs: RETRY_MS }, 'The gateway has ended: events are not taken');
      await sleep(RETRY_MS, undefined, { signal }).catch(() => {});
    }
  }
}
