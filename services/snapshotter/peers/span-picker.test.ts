import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SpanPicker, type NeighbourSpeeds, type PickLimits } from './span-picker.ts';

function picker(limits: Partial<PickLimits> = {}, spanCount = 8, speeds?: NeighbourSpeeds<string>): SpanPicker<string> {
  const known = speeds === undefined ? {} : { speeds };
  return new SpanPicker<string>({ spanCount, bytesOf: () => 400_000, random: () => 0, limits, ...known });
}

/** Milliseconds that each needs for 400,000 bytes; `slow` are those to take nothing from. */
function speeds(ms: Readonly<Record<string, number>>, ...slow: readonly string[]): NeighbourSpeeds<string> {
  const msFor = (name: string, bytes: number): number | undefined =>
    ms[name] === undefined ? undefined : (ms[name] * bytes) / 400_000;
  return { msFor, isSlow: (name) => slow.includes(name) };
}

function having(it: SpanPicker<string>, neighbour: string, ...spans: readonly number[]): void {
  it.addNeighbour(neighbour);
  for (const span of spans) it.mark(neighbour, span, true);
}

test('the span that the fewest neighbours have is taken first', () => {
  const it = picker();
  having(it, 'a', 0, 1, 2);
  having(it, 'b', 0, 2);
  for (const span of [0, 1, 2]) it.want(span, false);
  assert.deepEqual(it.pick(0), { neighbour: 'a', spans: [1], bytes: 400_000, demand: false });
});

test('what a reader waits for goes before what is rare', () => {
  const it = picker();
  having(it, 'a', 0, 1, 2);
  having(it, 'b', 0, 2);
  for (const span of [0, 1, 2]) it.want(span, false);
  it.want(2, true);
  assert.deepEqual(it.pick(0)?.spans, [2]);
});

test('nothing is asked from one who has not got it, is busy with us, or rests', () => {
  const it = picker();
  having(it, 'a', 0, 1);
  for (const span of [0, 1, 2]) it.want(span, false);
  const first = it.pick(0);
  assert.ok(first);
  assert.equal(it.pick(0), undefined);
  it.ended(first, first.spans, 50);
  assert.equal(it.pick(10), undefined);
  assert.equal(it.nextRestMs(10), 50);
  const again = it.pick(50);
  assert.ok(again);
  it.ended(again, []);
  for (const span of again.spans) it.unwant(span);
  assert.equal(it.pick(50)?.neighbour, 'a');
  assert.equal(it.pick(50), undefined);
});

test('no more transfers than the limit, each span in one of them only', () => {
  const it = picker({ transfers: 2 });
  for (const name of ['a', 'b', 'c']) having(it, name, 0, 1, 2, 3);
  for (const span of [0, 1, 2, 3]) it.want(span, false);
  const picks = [it.pick(0), it.pick(0)];
  assert.equal(new Set(picks.flatMap((pick) => pick?.spans ?? [])).size, 2);
  assert.equal(it.pick(0), undefined);
});

test('others begin in the stead of transfers that are late, but not of many: then this node itself is slow', () => {
  const it = picker({ transfers: 1, late: 1 });
  for (const name of ['a', 'b', 'c']) having(it, name, 0, 1, 2);
  for (const span of [0, 1, 2]) it.want(span, false);
  const first = it.pick(0);
  assert.ok(first);
  assert.equal(it.pick(0), undefined);
  it.late(first, first.spans);
  assert.equal(it.transfers, 0);
  assert.equal(it.wantedCount, 3);
  const second = it.pick(0);
  assert.ok(second);
  it.late(second, second.spans);
  assert.equal(it.pick(0), undefined, 'one late is enough');
  it.ended(first, []);
  assert.equal(it.transfers, 1);
  it.ended(second, []);
  assert.equal(it.transfers, 0);
});

test('small adjacent spans go in one transfer', () => {
  const it = picker({ groupBytes: 1_200_000 });
  having(it, 'a', 0, 1, 2, 3);
  for (const span of [0, 1, 2, 3]) it.want(span, false);
  assert.deepEqual(it.pick(0)?.spans, [0, 1, 2]);
});

test('a neighbour that has gone counts no more, and one that evicted a span is not asked for it', () => {
  const it = picker();
  having(it, 'a', 0);
  having(it, 'b', 0);
  it.want(0, false);
  it.removeNeighbour('a');
  assert.equal(it.copies(0), 1);
  it.mark('b', 0, false);
  assert.equal(it.pick(0), undefined);
});

test('a reserved span is picked only after it was released', () => {
  const it = picker();
  having(it, 'a', 0);
  it.want(0, false);
  assert.equal(it.reserve(0), true);
  assert.equal(it.reserve(0), false);
  assert.equal(it.pick(0), undefined);
  it.release(0);
  assert.deepEqual(it.pick(0)?.spans, [0]);
});

test('of those that have a span one is asked that will be done about as soon as any, also if that one is busy now', () => {
  const it = picker({}, 8, speeds({ a: 5_000, b: 400, c: 1_000 }));
  for (const name of ['a', 'b', 'c']) having(it, name, 0, 1, 2, 3);
  for (const span of [0, 1, 2, 3]) it.want(span, false);
  const picks = [it.pick(0), it.pick(0)];
  assert.deepEqual(picks.map((pick) => pick?.neighbour).toSorted(), ['b', 'c']);
  assert.equal(it.pick(0), undefined, 'b would have it long before a, though b has something to send already');
});

test('a neighbour whose speed is not known is tried, and one that is soon done is as good as any', () => {
  const it = picker({}, 8, speeds({ a: 150, b: 10 }));
  for (const name of ['a', 'b', 'c']) having(it, name, 0, 1, 2);
  for (const span of [0, 1, 2]) it.want(span, false);
  const picks = [it.pick(0), it.pick(0), it.pick(0)];
  assert.deepEqual(picks.map((pick) => pick?.neighbour).toSorted(), ['a', 'b', 'c']);
});

test('nothing is taken from a slow neighbour; what only it has counts as nowhere', () => {
  const it = picker({}, 8, speeds({}, 'a'));
  having(it, 'a', 0, 1);
  having(it, 'b', 1);
  for (const span of [0, 1, 2]) it.want(span, false);
  it.want(0, true);
  assert.deepEqual(it.pick(0)?.spans, [1]);
  assert.equal(it.pick(0), undefined);
  assert.deepEqual(it.nowhere(8, true), [0]);
  assert.deepEqual(it.nowhere(8, false), [0, 2]);
  assert.deepEqual(it.slowOnly(8), [0]);
});
