import assert from 'node:assert/strict';
import { test } from 'node:test';
import { EarlyReads } from './early-reads.ts';

/** Whether the promise has resolved, once all that was due has run. */
async function isSettled(promise: Promise<void>): Promise<boolean> {
  let settled = false;
  void promise.then(() => (settled = true));
  await new Promise((resolve) => setImmediate(resolve));
  return settled;
}

test('a read goes on when its part of each of its spans is there', async () => {
  const reads = new EarlyReads();
  const both = reads.begin([100, 900], [4, 5]);
  const one = reads.begin([800, 900], [5]);
  assert.deepEqual(
    reads.of(5).map(({ range }) => range),
    [
      [100, 900],
      [800, 900],
    ],
  );
  reads.came(5, reads.of(5));
  assert.equal(await isSettled(one.ready), true);
  assert.equal(await isSettled(both.ready), false);
  reads.came(4, reads.of(4));
  assert.equal(await isSettled(both.ready), true);
  assert.deepEqual([reads.of(4), reads.of(5)], [[], []]);
});

test('only those that are named go on, and one that has ended is forgotten', async () => {
  const reads = new EarlyReads();
  const gone = reads.begin([0, 1], [7]);
  const named = reads.of(7);
  const later = reads.begin([5, 6], [7]);
  reads.end(gone);
  reads.came(7, named);
  assert.equal(await isSettled(later.ready), false);
  assert.deepEqual(reads.of(7), [later]);
  reads.end(later);
  assert.deepEqual(reads.of(7), []);
});
