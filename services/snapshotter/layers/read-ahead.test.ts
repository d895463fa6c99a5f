import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ReadAhead } from './read-ahead.ts';

const lengthOf = (span: number) => (span < 100 ? 256 * 1024 : undefined);

test('reads that jump about fetch nothing ahead', () => {
  const ahead = new ReadAhead();
  for (const span of [5, 50, 20, 70, 10, 90, 33]) assert.equal(ahead.note(span, span, true, lengthOf), undefined);
});

test('a reader that walks forward gets windows that grow, and no span twice', () => {
  const ahead = new ReadAhead();
  const fetched = new Set<number>([0]);
  const sizes: number[] = [];
  for (let span = 0; span < 60; span++) {
    const window = ahead.note(span, span, !fetched.has(span), lengthOf);
    fetched.add(span);
    if (window === undefined) continue;
    sizes.push(window.count);
    for (let at = window.first; at < window.first + window.count; at++) {
      assert.equal(fetched.has(at), false, `span ${at}`);
      fetched.add(at);
    }
  }
  assert.equal(sizes[0], 2);
  assert.ok(Math.max(...sizes) > 4);
});

test('two readers that take turns are both followed', () => {
  const ahead = new ReadAhead();
  ahead.note(0, 0, true, lengthOf);
  ahead.note(40, 40, true, lengthOf);
  assert.deepEqual(ahead.note(1, 1, true, lengthOf), { first: 2, count: 2 });
  assert.deepEqual(ahead.note(41, 41, true, lengthOf), { first: 42, count: 2 });
});

test('the end of the layer ends it', () => {
  const ahead = new ReadAhead();
  ahead.note(98, 98, true, lengthOf);
  assert.equal(ahead.note(99, 99, true, lengthOf), undefined);
});
