import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LocalBus } from '#shared/bus/local-bus.ts';
import type { Claims } from '#shared/bus/bus.ts';
import { sha256 } from '#shared/digest/digest.ts';
import type { SpanMap } from '#shared/layer/span-map.ts';
import { StreamTurns } from './stream-turns.ts';

/** Spans 2 to 5 come only together. */
const map: SpanMap = {
  layer: sha256(Buffer.from('a layer')),
  format: 'zstd',
  blobSize: 800,
  metadataSize: 0,
  imageSize: 0,
  spanCount: 8,
  prioritySpans: 0,
  imageStart: () => 0,
  imageEnd: () => 0,
  blobStart: (span) => span * 100,
  blobEnd: (span) => span * 100 + 100,
  payloadLength: () => 100,
  decodedLength: () => 100,
  streamOf: (span) => (span >= 2 && span <= 5 ? [2, 5] : undefined),
  spansOf: () => undefined,
};

const NOW_MS = 1_000_000;

/** `silentMs`: since something came last. */
function node(claims: Claims, options: { readonly silentMs?: number; readonly together?: boolean } = {}) {
  const reads: (readonly number[])[] = [];
  const fetching: (readonly number[])[] = [];
  const elsewhere: (readonly number[])[] = [];
  const here = new Set<number>([3]);
  const near = new Set<number>();
  const turns = new StreamTurns(map, {
    claims,
    together: () => options.together ?? true,
    progressMs: () => NOW_MS - (options.silentMs ?? 0),
    now: () => NOW_MS,
    isWanted: (span) => !here.has(span),
    isNear: (span) => near.has(span),
    fetching: (spans) => fetching.push(spans),
    elsewhere: (spans) => elsewhere.push(spans),
    stopping: new AbortController().signal,
  });
  let release = () => {};
  const held = new Promise<void>((resolve) => (release = resolve));
  const read = async (spans: readonly number[]) => {
    reads.push(spans);
    await held;
  };
  return {
    turns,
    near,
    reads,
    fetching,
    elsewhere,
    release,
    read: async (spans: readonly number[]) => await turns.read(spans, read),
  };
}

test('what can be had alone is read as it is asked for, and of a stream all that is wanted', async () => {
  await using bus = new LocalBus();
  const { read, reads, fetching, elsewhere, release } = node(bus.claims);
  release();
  await read([0, 1, 2, 6]);
  assert.deepEqual(reads, [[0, 1], [6], [2, 4, 5]]);
  assert.deepEqual([fetching, elsewhere], [[[2, 4, 5]], []]);
});

test('one node reads a stream at a time, and the next one when that has ended', async () => {
  await using bus = new LocalBus();
  const first = node(bus.claims);
  const second = node(bus.claims);
  const reading = first.read([4]);
  while (first.reads.length === 0) await new Promise(setImmediate);
  await second.read([4, 5]);
  assert.deepEqual([second.reads, second.elsewhere], [[], [[4, 5]]]);
  assert.equal(second.turns.isElsewhere(2), true);
  assert.equal(second.turns.isElsewhere(6), false);
  assert.equal(first.turns.isElsewhere(2), false);
  first.release();
  await reading;
  const third = node(bus.claims);
  third.release();
  await third.read([5]);
  assert.deepEqual(third.reads, [[2, 4, 5]]);
});

test('a node reads for itself where the one that has the turn brings nothing, and where nobody can be asked', async () => {
  await using bus = new LocalBus();
  await using _other = await bus.claims.claim(`stream-${map.layer.slice(7)}-2`, new AbortController().signal);
  const impatient = node(bus.claims, { silentMs: NOW_MS });
  const lone = node(bus.claims, { together: false });
  const deaf = node({ claim: () => Promise.reject(new Error('no bus')) });
  for (const one of [impatient, lone, deaf]) {
    one.release();
    await one.read([2]);
    assert.deepEqual(one.reads, [[2, 4, 5]]);
  }
});

test('what neighbours have of a stream is waited for while something comes, and read once nothing does', async () => {
  await using bus = new LocalBus();
  const one = node(bus.claims);
  one.release();
  for (const span of [2, 4, 5]) one.near.add(span);
  await one.read([4]);
  assert.deepEqual([one.reads, one.elsewhere, one.turns.isElsewhere(2)], [[], [[4]], true]);
  const part = node(bus.claims);
  part.release();
  part.near.add(2);
  await part.read([4]);
  assert.deepEqual(part.reads, [[4, 5]]);
  const stalled = node(bus.claims, { silentMs: 6_000 });
  stalled.release();
  for (const span of [2, 4, 5]) stalled.near.add(span);
  await stalled.read([4]);
  assert.deepEqual(stalled.reads, [[2, 4, 5]]);
});

test('of those that have waited in vain one more reads at a time, not all', async () => {
  await using bus = new LocalBus();
  await using _stuck = await bus.claims.claim(`stream-${map.layer.slice(7)}-2`, new AbortController().signal);
  const waiting = [14_000, 16_000, 16_000, 21_000, 21_000].map((silentMs) => node(bus.claims, { silentMs }));
  const reading: Promise<void>[] = [];
  for (const one of waiting) {
    const began = one.read([2]);
    reading.push(began);
    while (one.reads.length + one.elsewhere.length === 0) await new Promise(setImmediate);
  }
  assert.deepEqual(
    waiting.map(({ reads }) => reads.length),
    [0, 1, 0, 1, 0],
  );
  for (const one of waiting) one.release();
  await Promise.all(reading);
});
