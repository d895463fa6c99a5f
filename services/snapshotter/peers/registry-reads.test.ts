import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LocalBus } from '#shared/bus/local-bus.ts';
import { sha256 } from '#shared/digest/digest.ts';
import type { SpanMap } from '#shared/layer/span-map.ts';
import type { SpanRequest } from '../layers/span-source.ts';
import { RegistryReads, type RegistryReadsOptions } from './registry-reads.ts';
import { SpanPicker } from './span-picker.ts';
import { SwarmCalls } from './swarm-calls.ts';

const layer = sha256(Buffer.from('a layer'));
/** Spans 1 to 3 come only together. */
const map = {
  layer,
  spanCount: 4,
  blobStart: (span: number) => span * 100,
  blobEnd: (span: number) => span * 100 + 100,
  payloadLength: () => 100,
  streamOf: (span: number) => (span > 0 ? [1, 3] : undefined),
} as unknown as SpanMap;
const never = new AbortController().signal;

/** A node whose registry gives all at once, and that stores nothing before `store`. */
function node(bus: LocalBus) {
  const calls = new SwarmCalls();
  const store = Promise.withResolvers<void>();
  const read: number[] = [];
  const bytes = { form: 'compressed', bytes: new Uint8Array(100) } as const;
  const deps = {
    claims: bus.claims,
    link: { up: true },
    registry: {
      fetch: async ({ first, last }: SpanRequest, deliver: (span: number, given: typeof bytes) => unknown) => {
        for (let span = first; span <= last; span++) {
          read.push(span);
          deliver(span, bytes);
        }
      },
    },
    outbox: { say: () => undefined },
    metrics: { leases: { inc: () => undefined } },
    rates: { registryTook: () => undefined, registryFailed: () => undefined },
    logger: { debug: () => undefined },
  } as unknown as RegistryReadsOptions['deps'];
  const reads = new RegistryReads({
    layer,
    map,
    deps,
    calls,
    picker: new SpanPicker<string>({ spanCount: 4, bytesOf: () => 100, random: () => 0 }),
    works: new Set(),
    progressMs: () => performance.now(),
    delivered: (span) => calls.deliver(span, bytes),
    giveUp: (span) => calls.giveUp(span),
    ended: () => undefined,
    stopping: never,
  });
  const want = (first: number, last: number) =>
    calls.add(
      { first, last } as SpanRequest,
      () => store.promise,
      0,
      never,
      () => undefined,
    );
  return { reads, read, want, store: store.resolve };
}

test('who reads a stream keeps the turn until what came is verified, and others wait for that', async () => {
  await using bus = new LocalBus();
  const [first, second] = [node(bus), node(bus)];
  const wanted = [first.want(0, 3), second.want(1, 3)];
  await first.reads.read([0], 'lease');
  const reading = first.reads.read([2], 'lease');
  await wanted[0];
  assert.deepEqual(first.read, [0, 1, 2, 3]);
  await second.reads.read([1], 'impatient');
  assert.deepEqual(second.read, []);
  first.store();
  await reading;
  const third = node(bus);
  void third.want(1, 3);
  third.store();
  await third.reads.read([1], 'lease');
  assert.deepEqual(third.read, [1, 2, 3]);
});
