import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { hexOf, sha256, type Digest } from '#shared/digest/digest.ts';
import { SpanSet } from '#shared/distribution/span-set.ts';
import { silentLogger } from '#shared/telemetry/logger.ts';
import type { RedisClient } from './redis-client.ts';
import { RedisDirectory } from './redis-directory.ts';

const TERMS = { ttlMs: 1_000, ageMs: 4_000 };
const LIMITS = { samples: 8, unread: 16 };
const RECORD = { node: 'a', host: '10.0.0.1', port: 7000, zone: '', tls: false };

/** What somebody else has done to the keys of a layer, or to those of all. */
const DAMAGES: Readonly<Record<string, (raw: RedisClient, keyOf: (name: string) => string) => Promise<unknown>>> = {
  'a set in place of a bitmap': async (raw, keyOf) => {
    await raw.del(keyOf('any'));
    await raw.sadd(keyOf('any'), 'x');
  },
  'a bitmap that was cut short': async (raw, keyOf) => await raw.set(keyOf('any'), ''),
  "a node's bitmap that was cut short": async (raw, keyOf) => await raw.set(keyOf('b:a'), '\0'),
  'a text in place of the members': async (raw, keyOf) => await raw.set(keyOf('members'), 'x'),
  'a lease that is none': async (raw, keyOf) => await raw.hset(keyOf('leases'), '3', 'nonsense'),
  'somebody who waits for nonsense': async (raw, keyOf) => await raw.hset(keyOf('waiting'), 'a', 'many'),
  'an unread span that is none': async (raw, keyOf) => await raw.zadd(keyOf('unread'), 0, 'first'),
  'a text in place of the leases': async (raw, keyOf) => await raw.set(keyOf('leases'), 'x'),
  'a text in place of the nodes': async (raw) => await raw.set('kd:{nodes}:records', 'x'),
  'a text in place of when nodes were seen': async (raw) => await raw.set('kd:{nodes}:seen', 'x'),
  'a text in place of the layers': async (raw) => await raw.set('kd:layers', 'x'),
  "a text in place of a node's layers": async (raw) => await raw.set('kd:node:a:layers', 'x'),
};

/** `open`: the server, and a connection of somebody who writes what he wants. */
export function garbageTests(
  name: string,
  open: () => Promise<{ readonly url: string; readonly raw: RedisClient }>,
): void {
  const it = (what: string, run: (raw: RedisClient, url: string) => Promise<void>) =>
    test(`${name}: ${what}`, async () => {
      const { url, raw } = await open();
      try {
        while (raw.status !== 'ready') await sleep(5);
        await run(raw, url);
      } finally {
        raw.disconnect();
      }
    });

  it('garbage is deleted where it is met, counted, and asked for again', async (raw, url) => {
    for (const [what, damage] of Object.entries(DAMAGES)) {
      let found = 0;
      // Another one each time: what is lost is asked for again only every few seconds.
      await using directory = new RedisDirectory({ url, logger: silentLogger, onGarbage: () => found++ });
      while (!directory.ready) await sleep(5);
      const layer = sha256(Buffer.from(`${name} ${what}`));
      const says = async () => {
        await directory.nodes.put(RECORD, 0);
        await directory.layers.change(layer, 'a', { spanCount: 20, have: SpanSet.of(20, [1, 9]).bytes }, 0, TERMS);
        const more = { spanCount: 20, fetching: [3], wants: SpanSet.of(20, [5]).bytes, waiting: { load: 0, room: 1 } };
        await directory.layers.change(layer, 'a', more, 0, TERMS);
      };
      await says();
      const epoch = await directory.epoch();
      await damage(raw, (key) => `kd:{${hexOf(layer)}}:${key}`);
      await directory.layers.look(layer, 0, TERMS, LIMITS);
      await says();
      await directory.nodes.silent(0);
      assert.ok(found > 0, `${what} was not found`);
      assert.notEqual(await directory.epoch(), epoch, what);
      // It is as though it had never been.
      await says();
      assert.deepEqual(
        await seen(directory, layer),
        { nodes: 1, unread: [5], outstanding: 1, held: 2, copies: 2 },
        what,
      );
      await directory.nodes.remove('a', 0);
    }
  });

  it('a secret or a mark of the epoch that is garbage is made anew', async (raw, url) => {
    let found = 0;
    await using directory = new RedisDirectory({ url, logger: silentLogger, onGarbage: () => found++ });
    while (!directory.ready) await sleep(5);
    const parse = (text: string): string => {
      if (text === 'x') throw new Error('no secret');
      return text;
    };
    await raw.set('kd:secret', 'x');
    assert.equal(await directory.secret(() => 'new', parse), 'new');
    const mark = url.includes(',') ? 'kd:epoch:7' : 'kd:epoch';
    await raw.del(mark);
    await raw.sadd(mark, 'x');
    assert.match(await directory.epoch(), /^[0-9a-f-]{36,64}$/);
    assert.equal(found, 2);
  });
}

async function seen(directory: RedisDirectory, layer: Digest) {
  const { unread, outstanding } = await directory.layers.look(layer, 0, TERMS, LIMITS);
  const [nodes, summaries] = await Promise.all([directory.nodes.get(['a']), directory.layers.summaries(10_000)]);
  const summary = summaries.find((one) => one.layer === layer);
  return { nodes: nodes.length, unread, outstanding, held: summary?.held, copies: summary?.copies };
}
