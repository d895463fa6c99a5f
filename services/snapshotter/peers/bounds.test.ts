import assert from 'node:assert/strict';
import { test } from 'node:test';
import { TransferPace } from './transfer-pace.ts';
import { UploadRate } from './upload-rate.ts';
import { UploadSlots } from './upload-slots.ts';

test('upload slots are handed on in order, and those beyond the queue are told that we are busy', async () => {
  const { signal } = new AbortController();
  const slots = new UploadSlots({ active: 1, queued: 2 });
  const first = await slots.take(signal);
  const order: string[] = [];
  const second = slots.take(signal)?.then((slot) => (order.push('second'), slot));
  const third = slots.take(signal)?.then((slot) => (order.push('third'), slot));
  assert.equal(slots.take(signal), undefined);
  first?.[Symbol.dispose]();
  (await second)?.[Symbol.dispose]();
  (await third)?.[Symbol.dispose]();
  assert.deepEqual(order, ['second', 'third']);
  assert.deepEqual([slots.active, slots.queued], [0, 0]);
});

test('one that leaves the queue frees its place', async () => {
  const slots = new UploadSlots({ active: 1, queued: 1 });
  const held = await slots.take(new AbortController().signal);
  const leaving = new AbortController();
  const left = slots.take(leaving.signal);
  leaving.abort(new Error('gone'));
  assert.ok(left);
  await assert.rejects(left, /gone/);
  const next = slots.take(new AbortController().signal);
  held?.[Symbol.dispose]();
  assert.ok(await next);
});

test('the upload rate makes later bytes wait, after a burst', () => {
  const rate = new UploadRate(1_000_000);
  assert.equal(rate.delayMs(250_000, 1_000), 0);
  assert.equal(rate.delayMs(100_000, 1_000), 0);
  assert.equal(rate.delayMs(100_000, 1_000), 100);
  assert.equal(new UploadRate(0).delayMs(1e12, 0), 0);
});

test('a transfer is raced after a time learned from others, within bounds', () => {
  const pace = new TransferPace();
  assert.equal(pace.hedgeMs, 1_000);
  for (let i = 0; i < 50; i++) pace.took(10);
  assert.equal(pace.hedgeMs, 300);
  for (let i = 0; i < 50; i++) pace.took(400);
  assert.ok(pace.hedgeMs > 1_000 && pace.hedgeMs < 1_600, String(pace.hedgeMs));
  for (let i = 0; i < 50; i++) pace.took(60_000);
  assert.equal(pace.hedgeMs, 3_000);
});
