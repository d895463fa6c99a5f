import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseReceiving } from '#shared/distribution/span-frames.ts';
import { DOWNLOAD_PACE, TransferPace } from './transfer-pace.ts';
import { UploadRate } from './upload-rate.ts';
import { UPLOAD_LIMITS, UploadSlots, type UploadTurn } from './upload-slots.ts';

const ANY = { demand: false, receiving: 0 };

test('upload slots are handed on in order, and those beyond the queue are told that we are busy', async () => {
  const { signal } = new AbortController();
  const slots = new UploadSlots({ ...UPLOAD_LIMITS, active: 1, queued: 2 });
  const first = await slots.take(ANY, signal);
  const order: string[] = [];
  const second = slots.take(ANY, signal)?.then((slot) => (order.push('second'), slot));
  const third = slots.take(ANY, signal)?.then((slot) => (order.push('third'), slot));
  assert.equal(slots.take(ANY, signal), undefined);
  first?.[Symbol.dispose]();
  (await second)?.[Symbol.dispose]();
  (await third)?.[Symbol.dispose]();
  assert.deepEqual(order, ['second', 'third']);
  assert.deepEqual([slots.active, slots.queued], [0, 0]);
});

test('one that leaves the queue frees its place', async () => {
  const slots = new UploadSlots({ ...UPLOAD_LIMITS, active: 1, queued: 1 });
  const held = await slots.take(ANY, new AbortController().signal);
  const leaving = new AbortController();
  const left = slots.take(ANY, leaving.signal);
  leaving.abort(new Error('gone'));
  assert.ok(left);
  await assert.rejects(left, /gone/);
  const next = slots.take(ANY, new AbortController().signal);
  held?.[Symbol.dispose]();
  assert.ok(await next);
});

/** Enters the slots with requests while one holds the only slot, and tells who gets it in turn. */
function served(requests: readonly { readonly name: string; readonly demand?: boolean; readonly receiving: number }[]) {
  const slots = new UploadSlots({ active: 1, queued: requests.length, lasting: 0, overtaken: 2 });
  const order: string[] = [];
  let current: UploadTurn | undefined = slots.enter(ANY, () => {});
  for (const { name, demand = false, receiving } of requests) {
    slots.enter({ demand, receiving }, (turn) => {
      order.push(name);
      current = turn;
    });
  }
  for (let i = 0; i <= requests.length; i++) current?.end();
  assert.deepEqual([slots.active, slots.queued], [0, 0]);
  return order;
}

test('whoever a reader waits for gets the next slot, then whoever is getting least, then who came first', () => {
  const order = served([
    { name: 'loaded', receiving: 4 },
    { name: 'idle', receiving: 0 },
    { name: 'reader', receiving: 7, demand: true },
    { name: 'idle too', receiving: 0 },
  ]);
  assert.deepEqual(order, ['reader', 'idle', 'loaded', 'idle too']);
});

test('nobody is overtaken for ever, whatever others say of themselves', () => {
  const order = served([
    { name: 'honest', receiving: 5 },
    ...['a', 'b', 'c', 'd'].map((name) => ({ name, receiving: 0, demand: true })),
  ]);
  assert.deepEqual(order, ['a', 'b', 'honest', 'c', 'd']);
});

test('one that lasts long holds up nobody, and at most so many are given beside the others', () => {
  const slots = new UploadSlots({ active: 1, queued: 4, lasting: 1, overtaken: 2 });
  const started: UploadTurn[] = [];
  for (let i = 0; i < 3; i++) slots.enter(ANY, (turn) => started.push(turn));
  const [first] = started;
  first?.lasts();
  first?.lasts();
  assert.deepEqual([started.length, slots.active, slots.queued], [2, 2, 1]);
  started[1]?.lasts();
  assert.equal(started.length, 2, 'no more than one');
  first?.end();
  first?.end();
  assert.deepEqual([started.length, slots.active, slots.queued], [2, 1, 1]);
  started[1]?.lasts();
  started[1]?.end();
  started[2]?.end();
  assert.deepEqual([started.length, slots.active, slots.queued], [3, 0, 0]);
});

test('a request says what its sender is getting, and nothing else brings it forward', () => {
  assert.deepEqual(
    ['0', '7', '99', '-1', '100', 'x', '', undefined].map((header) => parseReceiving(header)),
    [0, 7, 99, 99, 99, 99, 99, 99],
  );
});

test('the upload rate makes later bytes wait, after a burst', () => {
  const rate = new UploadRate(1_000_000);
  assert.equal(rate.delayMs(250_000, 1_000), 0);
  assert.equal(rate.delayMs(100_000, 1_000), 0);
  assert.equal(rate.delayMs(100_000, 1_000), 100);
  assert.equal(new UploadRate(0).delayMs(1e12, 0), 0);
});

test('a transfer is raced after a time learned from others, within bounds', () => {
  const pace = new TransferPace(DOWNLOAD_PACE);
  assert.equal(pace.lateMs, 1_000);
  for (let i = 0; i < 50; i++) pace.took(10);
  assert.equal(pace.lateMs, 300);
  for (let i = 0; i < 50; i++) pace.took(400);
  assert.ok(pace.lateMs > 1_000 && pace.lateMs < 1_600, String(pace.lateMs));
  for (let i = 0; i < 50; i++) pace.took(60_000);
  assert.equal(pace.lateMs, 3_000);
});
