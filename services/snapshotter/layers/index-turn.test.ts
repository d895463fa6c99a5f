import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LocalBus } from '#shared/bus/local-bus.ts';
import { sha256 } from '#shared/digest/digest.ts';
import { IndexTurn } from './index-turn.ts';

const layer = sha256(Buffer.from('a layer'));
const never = new AbortController().signal;
const index = Uint8Array.of(1, 2, 3);
const nothing = () => Promise.resolve(undefined);

test('one reads the blob, and the others get the index that it makes', async () => {
  await using bus = new LocalBus();
  let published: Uint8Array | undefined;
  const turn = new IndexTurn(bus.claims);
  const first = await turn.wait(layer, 1000, nothing, never);
  assert.ok('claim' in first && first.claim !== undefined);
  let looked = 0;
  const others = [0, 1].map(async () =>
    turn.wait(
      layer,
      1000,
      async () => {
        // Both have looked in vain.
        if (++looked === 3) published = index;
        return published;
      },
      never,
    ),
  );
  assert.deepEqual(await Promise.all(others), [{ index }, { index }]);
  await first.claim[Symbol.asyncDispose]();
  assert.ok('claim' in (await turn.wait(layer, 1000, nothing, never)));
});

test('when the one that reads has gone, another one does', async () => {
  await using bus = new LocalBus();
  const turn = new IndexTurn(bus.claims);
  const first = await turn.wait(layer, 1000, nothing, never);
  assert.ok('claim' in first && first.claim !== undefined);
  const { claim } = first;
  let looked = 0;
  const second = await turn.wait(
    layer,
    1000,
    async () => {
      if (++looked === 1) await claim[Symbol.asyncDispose]();
      return undefined;
    },
    never,
  );
  assert.ok('claim' in second && second.claim !== undefined);
});

test('when the one that reads takes too long, one more reads at a time, and in the end all that still wait', async () => {
  await using bus = new LocalBus();
  let nowMs = 0;
  const turn = new IndexTurn(bus.claims, () => nowMs);
  /** Of one that has just come, and whose first look takes `ms`. */
  const wait = async (ms: number, found?: Uint8Array) => {
    nowMs = 0;
    let looked = 0;
    return await turn.wait(
      layer,
      1000,
      () => {
        nowMs = ms;
        return Promise.resolve(++looked === 1 ? undefined : found);
      },
      never,
    );
  };
  const claims = [];
  // The time of each turn is a little more than 10 s.
  for (const ms of [0, 11_000, 22_000]) {
    const given = await wait(ms);
    assert.ok('claim' in given && given.claim !== undefined, `after ${ms} ms`);
    claims.push(given.claim);
    assert.deepEqual(await wait(ms, index), { index }, 'whoever comes in the same time is not given the same turn');
  }
  assert.deepEqual(await wait(33_000), { claim: undefined });
  for (const claim of claims) await claim[Symbol.asyncDispose]();
});

test('nobody to ask is no reason to wait, and an abort ends a wait', async () => {
  const deaf = { claim: () => Promise.reject(new Error('no bus')) };
  assert.deepEqual(await new IndexTurn(deaf).wait(layer, 1000, nothing, never), { claim: undefined });
  assert.deepEqual(await new IndexTurn(undefined).wait(layer, 1000, nothing, never), { claim: undefined });
  await using bus = new LocalBus();
  const turn = new IndexTurn(bus.claims);
  await turn.wait(layer, 1000, nothing, never);
  const abort = new AbortController();
  const find = () => {
    abort.abort(new Error('enough'));
    return Promise.resolve(undefined);
  };
  await assert.rejects(turn.wait(layer, 1000, find, abort.signal), { name: 'AbortError' });
});
