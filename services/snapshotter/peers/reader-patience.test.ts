import assert from 'node:assert/strict';
import { test } from 'node:test';
import { askMs, PATIENCE_LIMITS, ReaderPatience } from './reader-patience.ts';

const USUAL = { lateMs: 600, registryMs: 100 };

test('the distributor is asked when peers are late, later where reads from the registry take long, within bounds', () => {
  assert.equal(askMs({ lateMs: 300, registryMs: undefined }), 500);
  assert.equal(askMs({ lateMs: 700, registryMs: undefined }), 700);
  assert.equal(askMs({ lateMs: 3_000, registryMs: 200 }), 1_000);
  assert.equal(askMs({ lateMs: 300, registryMs: 600 }), 1_200);
  assert.equal(askMs({ lateMs: 300, registryMs: 60_000 }), 1_500);
});

test('a reader waits, then the distributor is asked once, and what that does not bring in time is read here', () => {
  const patience = new ReaderPatience();
  const at = (ms: number) => patience.next(7, ms, ms, USUAL);
  assert.deepEqual([0, 250, 500, 750, 1_000].map(at), ['wait', 'wait', 'wait', 'ask', 'ask']);
  patience.asked(7, 1_000);
  assert.deepEqual([1_250, 1_500, 2_000, 2_001].map(at), ['wait', 'wait', 'wait', 'read']);
});

test('a reader is never let wait longer than without asking', () => {
  const patience = new ReaderPatience();
  const slow = { lateMs: 9e9, registryMs: 9e9 };
  for (let ms = 0; ms <= PATIENCE_LIMITS.readMs; ms += 250) {
    if (patience.next(7, ms, ms, slow) === 'ask') patience.asked(7, ms);
  }
  assert.equal(patience.next(7, PATIENCE_LIMITS.readMs + 1, PATIENCE_LIMITS.readMs + 1, USUAL), 'read');
});

test('where no distributor answers it is read here', () => {
  const patience = new ReaderPatience();
  assert.equal(patience.next(7, 1_999, 1_999, undefined), 'wait');
  assert.equal(patience.next(7, 2_001, 2_001, undefined), 'read');
  patience.asked(8, 1_000);
  assert.equal(patience.next(8, 2_001, 1_001, undefined), 'read');
});

test('what was under way for long when a reader came is asked for first, and then read soon', () => {
  const patience = new ReaderPatience();
  const at = (ms: number) => patience.next(7, 60_000 + ms, ms, USUAL);
  assert.equal(at(0), 'ask');
  patience.asked(7, 0);
  assert.deepEqual([250, 499, 500].map(at), ['wait', 'wait', 'read']);
  patience.forget(7);
  assert.equal(at(1_000), 'ask');
});
