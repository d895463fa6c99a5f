import assert from 'node:assert/strict';
import { test } from 'node:test';
import { silentLogger } from '#shared/telemetry/logger.ts';
import type { RedisClient } from './redis-client.ts';
import { GarbageError, isGarbage } from './redis-garbage.ts';
import { RedisHealing } from './redis-healing.ts';

function replyError(message: string): Error {
  return Object.assign(new Error(message), { name: 'ReplyError' });
}

test('what Redis says of wrong types and what scripts cannot read is garbage, and its own failures are not', () => {
  for (const message of [
    'WRONGTYPE Operation against a key holding the wrong kind of value',
    'WRONGTYPE Operation against a key holding the wrong kind of value script: 1f, on @user_script:12.',
    'ERR user_script:9: attempt to concatenate a nil value script: 1f, on @user_script:9.',
    'user_script:8: GARBAGE kd:{ab}:any script: 1f, on @user_script:8.',
    'ERR hash value is not an integer',
  ]) {
    assert.equal(isGarbage(replyError(message)), true, message);
  }
  for (const message of [
    "OOM command not allowed when used memory > 'maxmemory'. script: 1f, on @user_script:12.",
    "READONLY You can't write against a read only replica. script: 1f, on @user_script:12.",
    'BUSY Redis is busy running a script',
    'LOADING Redis is loading the dataset in memory',
    'NOAUTH Authentication required.',
  ]) {
    assert.equal(isGarbage(replyError(message)), false, message);
  }
  assert.equal(isGarbage(new Error('Connection is closed.')), false);
  assert.equal(isGarbage(new GarbageError('nonsense')), true);
});

test('nodes are asked again for what was lost, also where that is too soon after the last time', async (t) => {
  t.mock.method(performance, 'now', () => nowMs);
  let nowMs = 100_000;
  let found = 0;
  let renewed = 0;
  const deleted: string[] = [];
  const redis = {
    type: (name: string) => Promise.resolve(name === 'right' ? 'set' : 'string'),
    unlink: (name: string) => Promise.resolve(deleted.push(name) > 0 ? 1 : 0),
  } as unknown as RedisClient;
  const healing = new RedisHealing(
    redis,
    silentLogger,
    () => found++,
    async () => void renewed++,
  );
  const suspects = async () =>
    [{ name: 'layer' }, { name: 'right', type: 'set' }, { name: 'wrong', type: 'set' }] as const;
  const broken = async () => {
    let times = 0;
    return await healing.sound(suspects, () =>
      times++ === 0 ? Promise.reject(new GarbageError('nonsense')) : Promise.resolve('done'),
    );
  };
  assert.equal(await broken(), 'done');
  assert.deepEqual([deleted, found, renewed], [['layer', 'wrong'], 1, 1]);
  nowMs += 1_000;
  await broken();
  assert.deepEqual([found, renewed], [2, 1]);
  nowMs += 5_000;
  await healing.settle();
  await healing.settle();
  assert.equal(renewed, 2);
  await assert.rejects(
    healing.sound(suspects, () => Promise.reject(new Error('Connection is closed.'))),
    /closed/,
  );
  assert.equal(found, 2);
});
