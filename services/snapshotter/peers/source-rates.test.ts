import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SourceRates } from './source-rates.ts';

const MiB = 1024 * 1024;

test('a peer is as fast as its latest transfers were, and what is long ago is forgotten', () => {
  let now = 0;
  const rates = new SourceRates(() => now);
  assert.equal(rates.msFor('a', MiB), undefined);
  rates.took('a', MiB, 100);
  assert.equal(rates.msFor('a', MiB), 100);
  for (let i = 0; i < 20; i++) rates.took('a', MiB, 400);
  assert.equal(Math.round((rates.msFor('a', MiB) ?? 0) / 10), 40);
  now = 60_000;
  assert.equal(rates.msFor('a', MiB), undefined);
  rates.took('a', MiB, 100);
  assert.equal(rates.msFor('a', MiB), 100);
});

test('a transfer that is not over yet shows that a peer has become slow, never that it is fast', () => {
  const rates = new SourceRates(() => 0);
  rates.took('a', MiB, 10);
  rates.atMost('a', MiB, 4);
  assert.equal(rates.msFor('a', MiB), 10);
  rates.atMost('a', MiB, 3_000);
  assert.equal(rates.msFor('a', MiB), 3_000);
});

test('a peer is slow when the registry is several times as fast, and none is while the registry fails', () => {
  let now = 0;
  const rates = new SourceRates(() => now);
  rates.took('slow', MiB, 8_000);
  rates.took('fast', MiB, 1_000);
  assert.deepEqual([rates.isSlow('slow'), rates.isSlow('fast'), rates.isSlow('unknown')], [true, false, false]);
  // Here all links are slow.
  rates.registryTook(MiB, 4_000);
  assert.equal(rates.isSlow('slow'), false);
  for (let i = 0; i < 20; i++) rates.registryTook(MiB, 100);
  assert.equal(rates.isSlow('slow'), true);
  assert.equal(rates.isSlow('fast'), false, 'it is not so slow that it matters');
  rates.registryFailed();
  assert.equal(rates.isSlow('slow'), false);
  now = 11_000;
  assert.equal(rates.isSlow('slow'), true);
});

test('a peer of which nothing comes is slow, until something does or it has been forgotten', () => {
  let now = 10_000;
  const rates = new SourceRates(() => now);
  rates.took('a', MiB, 10);
  rates.atMost('a', MiB / 2, 300);
  assert.equal(rates.isSlow('a'), false);
  now += 2_300;
  assert.equal(rates.isSlow('a'), true);
  rates.took('a', MiB / 2, 2_000);
  assert.equal(rates.isSlow('a'), false);
  rates.atMost('a', MiB / 2, 2_600);
  assert.equal(rates.isSlow('a'), true);
  now += 60_000;
  assert.equal(rates.isSlow('a'), false);
});

test('small transfers make nobody slow', () => {
  const rates = new SourceRates(() => 0);
  for (let i = 0; i < 20; i++) rates.took('a', 5_000, 2_000);
  assert.equal(rates.isSlow('a'), false);
});

test('while nothing has come from the registry a peer is slow beside the others: where all are, none is', () => {
  const rates = new SourceRates(() => 0);
  rates.took('a', MiB, 16_000);
  assert.equal(rates.isSlow('a'), true, 'there is no other');
  rates.took('b', MiB, 9_000);
  rates.took('c', MiB, 12_000);
  assert.deepEqual(
    ['a', 'b', 'c'].filter((node) => rates.isSlow(node)),
    [],
  );
  rates.took('d', MiB, 60_000);
  assert.deepEqual(
    ['a', 'b', 'c', 'd'].filter((node) => rates.isSlow(node)),
    ['d'],
  );
});

test('those who gave most are named, and only so many nodes are remembered', () => {
  const rates = new SourceRates(() => 0);
  for (let i = 0; i < 2_000; i++) rates.took(`n${i}`, 1_000 + i, 1);
  rates.took('n1500', 5_000, 1);
  rates.atMost('n1999', MiB, 9_000);
  assert.deepEqual(rates.feeds(2), [
    { node: 'n1500', bytes: 7_500 },
    { node: 'n1999', bytes: 2_999 },
  ]);
  assert.equal(rates.feeds(9_999).length, 1_024);
});
