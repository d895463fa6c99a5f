import { Cluster, Redis } from 'ioredis';
import type { Logger } from '#shared/telemetry/logger.ts';

/** One server, or a cluster of them: whoever uses it must keep the keys of a command in one slot. */
export type RedisClient = Redis | Cluster;

/** An answer later than this is none: nodes have given up on us by then. */
const COMMAND_TIMEOUT_MS = 2_000;
const RETRY_MS = { first: 50, longest: 1_000 } as const;
/** A command that hits a cluster in the middle of a change is sent again so often, after so long. */
const REDIRECTIONS = 4;
const REDIRECTION_MS = 50;

/**
 * `url`: as `REDIS_URL`. Several addresses, separated by commas, are of one Redis Cluster. It connects by itself, again and again;
 * meanwhile commands fail at once, since whoever asks the distributor has another way and takes it.
 */
export function openRedis(url: string, logger: Logger): RedisClient {
  const urls = url.split(',');
  const again = (attempt: number): number => Math.min(RETRY_MS.longest, RETRY_MS.first * attempt);
  const options = { commandTimeout: COMMAND_TIMEOUT_MS, maxRetriesPerRequest: 0, enableOfflineQueue: false };
  const client =
    urls.length === 1
      ? new Redis(url, { ...options, retryStrategy: again, lazyConnect: true })
      : new Cluster(urls, {
          redisOptions: { ...accessOf(url), ...options },
          enableOfflineQueue: false,
          clusterRetryStrategy: again,
          maxRedirections: REDIRECTIONS,
          retryDelayOnFailover: REDIRECTION_MS,
          retryDelayOnClusterDown: REDIRECTION_MS,
          retryDelayOnTryAgain: REDIRECTION_MS,
          slotsRefreshTimeout: COMMAND_TIMEOUT_MS,
          lazyConnect: true,
        });
  client.on('error', (error: unknown) => logger.debug({ err: error }, 'Redis'));
  if (client instanceof Redis) client.on('ready', () => void warnOfCluster(client, logger));
  client.connect().catch(() => {});
  return client;
}

/** Nodes that a cluster names by itself want the same user and password as those that it was named by. */
function accessOf(urls: string): { username?: string; password?: string; tls?: object } {
  const { username, password, protocol } = new URL(urls.split(',')[0] ?? '');
  return {
    ...(username === '' ? {} : { username: decodeURIComponent(username) }),
    ...(password === '' ? {} : { password: decodeURIComponent(password) }),
    ...(protocol === 'rediss:' ? { tls: {} } : {}),
  };
}

async function warnOfCluster(redis: Redis, logger: Logger): Promise<void> {
  const text = await redis.info('cluster').catch(() => '');
  if (!/^cluster_enabled:1/m.test(text)) return;
  logger.error('REDIS_URL names one server of a Redis Cluster: name two or more of them, separated by commas');
}
