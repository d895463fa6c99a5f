import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Cluster, Redis } from 'ioredis';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { TestRedis } from '#test/harness/redis.ts';
import { TestRedisCluster } from '#test/harness/redis-cluster.ts';
import { directoryConformance } from './directory-conformance.ts';
import { RedisDirectory } from './redis-directory.ts';
import { garbageTests } from './redis-garbage-tests.ts';

const skip = spawnSync('redis-server', ['--version'], { stdio: 'ignore' }).error
  ? 'redis-server is not installed'
  : false;

describe('Redis', { skip }, () => {
  let redis: TestRedis;
  before(async () => {
    redis = await TestRedis.start(AbortSignal.timeout(60_000));
  });
  after(async () => {
    await redis[Symbol.asyncDispose]();
  });
  const open = async () => {
    const directory = new RedisDirectory({ url: redis.url, logger: silentLogger });
    while (!directory.ready) await sleep(5);
    return directory;
  };

  directoryConformance('in Redis', open);
  garbageTests('in Redis', async () => ({ url: redis.url, raw: new Redis(redis.url) }));

  test('the epoch is another one after Redis has lost everything, and until then calls fail at once', async () => {
    await using directory = await open();
    const epoch = await directory.epoch();
    redis.kill();
    while (directory.ready) await sleep(5);
    await assert.rejects(directory.epoch());
    await redis.restart(AbortSignal.timeout(60_000));
    while (!directory.ready) await sleep(5);
    assert.notEqual(await directory.epoch(), epoch);
  });
});

describe('Redis Cluster', { skip }, () => {
  let cluster: TestRedisCluster;
  before(async () => {
    cluster = await TestRedisCluster.start(AbortSignal.timeout(60_000));
  });
  after(async () => {
    await cluster[Symbol.asyncDispose]();
  });
  const open = async () => {
    const directory = new RedisDirectory({ url: cluster.url, logger: silentLogger });
    while (!directory.ready) await sleep(5);
    return directory;
  };

  directoryConformance('in a Redis Cluster', open);
  garbageTests('in a Redis Cluster', async () => ({ url: cluster.url, raw: new Cluster(cluster.url.split(',')) }));

  test('the epoch is another one after one of the masters has lost its part', async () => {
    await using directory = await open();
    const epoch = await directory.epoch();
    await cluster.empty(1, AbortSignal.timeout(60_000));
    // Until it is connected again calls fail.
    const now = async () => await directory.epoch().catch(() => epoch);
    while ((await now()) === epoch) await sleep(20);
  });
});
