import assert from 'node:assert/strict';
import { test } from 'node:test';
import { askAgain } from './ask-again.ts';

interface Asked {
  readonly answer: (text: string) => void;
  readonly fail: (error: Error) => void;
  readonly signal: AbortSignal;
}

/** Asks that a test answers as it likes. */
function asking() {
  const asked: Asked[] = [];
  const ask = (signal: AbortSignal) =>
    new Promise<string>((resolve, reject) => asked.push({ answer: resolve, fail: reject, signal }));
  return { asked, ask };
}

const { signal } = new AbortController();

test('one that stands still is asked again, and the first answer counts', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const { asked, ask } = asking();
  const answered = askAgain(ask, { asks: 3, lateMs: 100 }, signal);
  assert.equal(asked.length, 1);
  t.mock.timers.tick(99);
  assert.equal(asked.length, 1);
  t.mock.timers.tick(1);
  assert.equal(asked.length, 2);
  asked[1]?.answer('second');
  const { answer, asks } = await answered;
  assert.deepEqual([answer, asks], ['second', 2]);
  assert.equal(asked[0]?.signal.aborted, true);
  t.mock.timers.tick(1_000);
  assert.equal(asked.length, 2);
});

test('no more are asked than is allowed, and a late answer still counts', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const { asked, ask } = asking();
  const answered = askAgain(ask, { asks: 3, lateMs: 100 }, signal);
  for (let i = 0; i < 10; i++) t.mock.timers.tick(100);
  assert.equal(asked.length, 3);
  asked[0]?.answer('first');
  assert.equal((await answered).answer, 'first');
});

test('it fails when all that were asked have failed, and at once where the only one has', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const { asked, ask } = asking();
  const answered = askAgain(ask, { asks: 2, lateMs: 100 }, signal);
  t.mock.timers.tick(100);
  asked[1]?.fail(new Error('timeout of the second'));
  asked[0]?.fail(new Error('timeout of the first'));
  await assert.rejects(answered, /the first/);
  const refused = askAgain(ask, { asks: 2, lateMs: 100 }, signal);
  asked[2]?.fail(new Error('nobody is there'));
  await assert.rejects(refused, /nobody is there/);
  t.mock.timers.tick(1_000);
  assert.equal(asked.length, 3);
});
