import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SpanPicker, type PickLimits } from './span-picker.ts';

function picker(limits: Partial<PickLimits> = {}, spanCount = 8): SpanPicker<string> {
  return new SpanPicker<string>({ spanCount, bytesOf: () => 400_000, random: () => 0, limits });
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
  assert.deepEqual(it.pick(0), { neighbour: 'a', spans: [1], demand: false });
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
