import type { Logger } from '#shared/telemetry/logger.ts';
import type { RedisClient } from './redis-client.ts';
import { isGarbage } from './redis-garbage.ts';

export interface SuspectKey {
  readonly name: string;
  /** Garbage only where it is of another type; undefined = in any case, since its contents belong to others that are. */
  readonly type?: 'string' | 'set' | 'zset' | 'hash';
}

/** What was forgotten is asked for again at most this often, since each time all nodes say all that they hold. */
const RENEW_MS = 5_000;

/** Deletes what is found in Redis and is none of ours, and lets nodes say again what was lost with it. */
export class RedisHealing {
  readonly #redis: RedisClient;
  readonly #logger: Logger;
  readonly #found: () => void;
  readonly #renew: () => Promise<void>;
  #renewedMs = -Infinity;
  /** Something was lost since. */
  #isDue = false;

  /** `found` is called for each time; `renew` begins another epoch. */
  constructor(redis: RedisClient, logger: Logger, found: () => void, renew: () => Promise<void>) {
    this.#redis = redis;
    this.#logger = logger;
    this.#found = found;
    this.#renew = renew;
  }

  /** Once more after it has met garbage, and that is gone. @throws what it throws, then the second time */
  async sound<T>(suspects: () => Promise<readonly SuspectKey[]>, work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      if (!isGarbage(error)) throw error;
      await this.#heal(await suspects(), error);
      return await work();
    }
  }

  async #heal(suspects: readonly SuspectKey[], error: unknown): Promise<void> {
    // One by one: in a Redis Cluster they may lie in different slots.
    const deleted = await Promise.all(
      suspects.map(async ({ name, type }) => {
        const isRight = type !== undefined && ['none', type].includes(await this.#redis.type(name));
        return isRight ? [] : (await this.#redis.unlink(name)) === 1 ? [name] : [];
      }),
    );
    this.#found();
    this.#logger.error(
      { err: error, keys: deleted.flat().slice(0, 8) },
      'Garbage in Redis: deleted, nodes say it again',
    );
    this.#isDue = true;
    await this.settle();
  }

  /** To be called now and then: begins another epoch where one is due that it was too soon for. */
  async settle(): Promise<void> {
    const now = performance.now();
    if (!this.#isDue || now - this.#renewedMs < RENEW_MS) return;
    this.#isDue = false;
    this.#renewedMs = now;
    await this.#renew();
  }
}
