import assert from 'node:assert/strict';
import { test } from 'node:test';
import { sha256 } from '#shared/digest/digest.ts';
import type { SpanFrame } from '#shared/distribution/span-frames.ts';
import type { SpanMap } from '#shared/layer/span-map.ts';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { Registry } from '#shared/telemetry/metrics.ts';
import type { Neighbourhood } from './neighbourhood.ts';
import { PackingChoice } from './packing-choice.ts';
import type { PeerClient } from './peer-client.ts';
import { PeerMetrics } from './peer-metrics.ts';
import { PeerTransfers } from './peer-transfers.ts';
import { SourceRates } from './source-rates.ts';
import { SpanPicker } from './span-picker.ts';
import type { SwarmCalls } from './swarm-calls.ts';
import type { TransferPace } from './transfer-pace.ts';

const SPAN_BYTES = 512 * 1024;
const SPANS = 4;

interface Asked {
  readonly spans: readonly number[];
  readonly demand: boolean;
  readonly begin: () => void;
  readonly give: (frame: SpanFrame) => void;
  readonly end: () => void;
  readonly signal: AbortSignal;
}

/** One neighbour, `a`, which has everything and does what a test says. */
function swarmOf(heardMs = performance.now()) {
  const now = { ms: 0 };
  const asked: Asked[] = [];
  const got: number[] = [];
  const rates = new SourceRates(() => now.ms);
  const picker = new SpanPicker<string>({ spanCount: SPANS, bytesOf: () => SPAN_BYTES, random: () => 0 });
  picker.addNeighbour('a');
  for (let span = 0; span < SPANS; span++) picker.mark('a', span, true);
  const client: Pick<PeerClient, 'spans'> = {
    spans: (_, { spans, demand, begun }, give, signal) => {
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      signal.addEventListener('abort', () => reject(signal.reason as Error));
      asked.push({ spans, demand, begin: begun, give, end: resolve, signal });
      return promise;
    },
  };
  const neighbour = { record: { node: 'a' }, failures: 0, absent: 0, heardMs };
  const transfers = new PeerTransfers({
    layer: sha256(Buffer.from('a layer')),
    map: { spanCount: SPANS, payloadLength: () => SPAN_BYTES } as unknown as SpanMap,
    deps: {
      client: client as PeerClient,
      metrics: new PeerMetrics(new Registry()),
      pace: { lateMs: 1, took: () => {} } as unknown as TransferPace,
      packing: new PackingChoice('never'),
      rates,
      logger: silentLogger,
    },
    calls: { has: (span: number) => !got.includes(span) } as unknown as SwarmCalls,
    picker,
    works: new Set(),
    neighbours: { get: () => neighbour } as unknown as Neighbourhood,
    capability: () => 'capability',
    delivered: (span) => {
      picker.unwant(span);
      got.push(span);
    },
    absent: () => {},
    ended: () => {},
  });
  const take = async (): Promise<void> => {
    const pick = picker.pick(performance.now());
    if (pick !== undefined) await transfers.take(pick);
  };
  const late = async (): Promise<number[]> => {
    for (;;) {
      const spans = transfers.late(SPANS);
      if (spans.length > 0) return spans;
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  };
  return { transfers, picker, asked, got, rates, now, take, late };
}

test('what was asked for ahead is asked for again when a reader waits for it, and comes once', async () => {
  const { transfers, picker, asked, got, take } = swarmOf();
  picker.want(2, false);
  const ahead = take();
  picker.want(2, true);
  assert.equal(picker.isWanted(2), false);
  transfers.urgent(2);
  await ahead;
  const now = take();
  transfers.urgent(2);
  assert.deepEqual(
    asked.map(({ spans, demand, signal }) => [spans, demand, signal.aborted]),
    [
      [[2], false, true],
      [[2], true, false],
    ],
  );
  asked[1]?.begin();
  asked[1]?.give({ span: 2, form: 'payload', bytes: Buffer.alloc(SPAN_BYTES) });
  asked[1]?.end();
  await now;
  assert.deepEqual([got, picker.isWanted(2), picker.transfers], [[2], false, 0]);
});

test('one that is there and lets us wait for a span is not slow, and what it has not got is looked for elsewhere', async () => {
  const { picker, asked, rates, now, take, late, transfers } = swarmOf();
  picker.want(1, false);
  const taking = take();
  assert.equal(transfers.someInTime, true);
  assert.deepEqual(await late(), [1]);
  assert.equal(transfers.someInTime, false);
  now.ms = 10_000;
  assert.equal(rates.isSlow('a'), false);
  asked[0]?.end();
  await taking;
});

test('one that begins to answer and does not go on is slow, and so is one that has fallen silent', async () => {
  for (const begins of [true, false]) {
    const { picker, asked, rates, now, take, late } = swarmOf(begins ? performance.now() : -Infinity);
    picker.want(1, false);
    const taking = take();
    if (begins) asked[0]?.begin();
    await late();
    now.ms = 10_000;
    assert.equal(rates.isSlow('a'), true);
    asked[0]?.end();
    await taking;
  }
});
