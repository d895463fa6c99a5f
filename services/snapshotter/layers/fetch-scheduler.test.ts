import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { sha256 } from '#shared/digest/digest.ts';
import type { SpanMap } from '#shared/layer/span-map.ts';
import { FetchScheduler } from './fetch-scheduler.ts';
import type { FetchLimits } from './fetch-pace.ts';
import type { FailedFetch, FetchedSpan, FetchTarget } from './fetch-target.ts';
import { Residency } from './residency.ts';
import type { DeliverSpan, FetchPriority, SpanBytes, SpanRequest, SpanSource } from './span-source.ts';

const SPAN = 100_000;
const never = new AbortController().signal;

function uniformMap(spans: number): SpanMap {
  return {
    layer: sha256(Buffer.from('a layer')),
    format: 'gzip',
    blobSize: spans * SPAN,
    metadataSize: 4096,
    imageSize: 4096 + spans * SPAN,
    spanCount: spans,
    prioritySpans: 0,
    imageStart: (span) => 4096 + span * SPAN,
    imageEnd: (span) => 4096 + (span + 1) * SPAN,
    blobStart: (span) => span * SPAN,
    blobEnd: (span) => (span + 1) * SPAN,
    payloadLength: () => SPAN,
    decodedLength: () => SPAN,
    streamOf: () => undefined,
    spansOf: () => undefined,
  };
}

class FakeTarget implements FetchTarget {
  readonly map: SpanMap;
  readonly layer = sha256(Buffer.from('a layer'));
  readonly origins = [{ repository: 'r.example/app', layer: this.layer, sizeBytes: 1, mediaType: '' }];
  readonly residency: Residency;
  readonly stored: [span: number, priority: FetchPriority][] = [];
  readonly suspected = new Set<number>();
  constructor(spans: number, map = uniformMap(spans)) {
    this.map = map;
    this.residency = new Residency(spans);
  }
  has(span: number) {
    return this.residency.has(span);
  }
  nextMissing(from: number) {
    return this.residency.nextMissing(from);
  }
  suspects(span: number) {
    return this.suspected.has(span);
  }
  readonly hurried: number[] = [];
  urgent(span: number) {
    this.hurried.push(span);
  }
  verify(span: number) {
    this.suspected.delete(span);
    // Odd ones have not survived.
    if (span % 2 === 0) this.residency.add(span);
    return Promise.resolve(span % 2 === 0);
  }
  store(span: number, bytes: SpanBytes, priority: FetchPriority): Promise<'stored' | 'mismatch'> {
    if (bytes.bytes[0] === BAD) return Promise.resolve('mismatch');
    this.stored.push([span, priority]);
    this.residency.add(span);
    return Promise.resolve('stored');
  }
}

const BAD = 66;

interface Call {
  readonly request: SpanRequest;
  readonly signal: AbortSignal;
  deliver(span: number, first?: number, size?: number): Promise<void> | undefined;
  end(error?: unknown): void;
}

/** A source whose answers the test gives by hand, or at once. */
class FakeSource implements SpanSource {
  readonly name: SpanSource['name'];
  readonly calls: Call[] = [];
  readonly rejections: number[] = [];
  answer: ((call: Call) => void) | undefined;
  constructor(name: SpanSource['name'] = 'registry') {
    this.name = name;
  }
  fetch(request: SpanRequest, deliver: DeliverSpan, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      signal.addEventListener('abort', () => reject(signal.reason));
      const call: Call = {
        request,
        signal,
        deliver: (span, first = 0, size = 1) =>
          deliver(span, { form: 'payload', bytes: new Uint8Array(size).fill(first, 0, 1) }),
        end: (error) => (error === undefined ? resolve() : reject(error)),
      };
      this.calls.push(call);
      this.answer?.(call);
    });
  }
  rejected(_request: SpanRequest, span: number) {
    this.rejections.push(span);
  }
}

const all = (call: Call) => {
  for (let span = call.request.first; span <= call.request.last; span++) void call.deliver(span);
  call.end();
};

function setup(options: { sources?: FakeSource[]; limits?: Partial<FetchLimits>; now?: () => number } = {}) {
  const sources = options.sources ?? [new FakeSource()];
  const fetched: FetchedSpan[] = [];
  const failed: FailedFetch[] = [];
  const scheduler = new FetchScheduler({
    sources,
    observer: { fetched: (event) => fetched.push(event), failed: (event) => failed.push(event) },
    limits: { backOffMs: 1, maxBackOffMs: 1, quietMs: 0, ...options.limits },
    now: options.now ?? (() => performance.now()),
  });
  const [source] = sources;
  assert.ok(source);
  return { scheduler, source, sources, fetched, failed };
}

async function calls(source: FakeSource, count: number): Promise<void> {
  while (source.calls.length < count) await turn();
}

test('concurrent readers of a span share one fetch', async () => {
  const { scheduler, source, fetched } = setup();
  const target = new FakeTarget(4);
  const reads = [0, 1, 2].map(() => scheduler.ensure(target, 1, 2, never));
  await calls(source, 1);
  const call = source.calls[0];
  assert.ok(call);
  assert.deepEqual([call.request.first, call.request.last], [1, 2]);
  const late = scheduler.ensure(target, 2, 2, never);
  all(call);
  await Promise.all([...reads, late]);
  assert.equal(source.calls.length, 1);
  assert.deepEqual(
    fetched.map((event) => event.span),
    [1, 2],
  );
  await scheduler.close();
});

test('a reader is served as soon as its span is there, before the rest of the request', async () => {
  const { scheduler, source } = setup();
  const target = new FakeTarget(8);
  const first = scheduler.ensure(target, 0, 0, never, 5);
  await calls(source, 1);
  assert.equal(source.calls[0]?.request.last, 5);
  void source.calls[0]?.deliver(0);
  await first;
  assert.equal(target.has(1), false);
  await scheduler.close();
});

test('a run is bounded, and what does not fit goes into the next one', async () => {
  const { scheduler, source } = setup({ limits: { runBytes: { demand: 3 * SPAN, prefetch: SPAN, background: SPAN } } });
  source.answer = all;
  const target = new FakeTarget(8);
  await scheduler.ensure(target, 0, 7, never);
  assert.deepEqual(
    source.calls.map(({ request }) => [request.first, request.last]),
    [
      [0, 2],
      [3, 5],
      [6, 7],
    ],
  );
  await scheduler.close();
});

test('a demand read cuts a lower run whose stream is far from its span, and each span still comes once', async () => {
  const { scheduler, source, fetched } = setup({ limits: { overtakeBytes: 2 * SPAN } });
  const target = new FakeTarget(10);
  scheduler.prefetch(target, 0, 10);
  await calls(source, 1);
  void source.calls[0]?.deliver(0);
  const read = scheduler.ensure(target, 8, 8, never);
  assert.equal(source.calls[0]?.signal.aborted, true);
  source.answer = all;
  await read;
  assert.deepEqual(source.calls[1]?.request.first, 8);
  while (!target.residency.complete) await turn();
  assert.deepEqual(
    fetched.map((event) => event.span).sort((a, b) => a - b),
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
  );
  await scheduler.close();
});

test('a demand read waits for a lower run that is about to bring its span', async () => {
  const { scheduler, source } = setup({ limits: { overtakeBytes: 2 * SPAN } });
  const target = new FakeTarget(10);
  scheduler.prefetch(target, 0, 10);
  await calls(source, 1);
  const read = scheduler.ensure(target, 2, 2, never);
  assert.equal(source.calls[0]?.signal.aborted, false);
  for (const span of [0, 1, 2]) source.calls[0]?.deliver(span);
  await read;
  assert.equal(source.calls.length, 1);
  await scheduler.close();
});

test('nothing goes in the background while a demand read is in flight, and it ends complete', async () => {
  const { scheduler, source } = setup();
  const target = new FakeTarget(6);
  const read = scheduler.ensure(target, 3, 3, never);
  scheduler.complete(target);
  await calls(source, 1);
  await turn();
  assert.equal(source.calls.length, 1);
  const [call] = source.calls;
  assert.ok(call);
  source.answer = all;
  all(call);
  await read;
  while (!target.residency.complete) await turn();
  assert.ok(source.calls.slice(1).every(({ request }) => request.priority === 'background'));
  await scheduler.close();
});

test('what one source does not deliver or cannot prove is asked from the next', async () => {
  const peer = new FakeSource('peer');
  const registry = new FakeSource();
  const { scheduler, failed, fetched } = setup({ sources: [peer, registry] });
  peer.answer = (call) => {
    call.deliver(0);
    call.deliver(1, BAD);
    call.end();
  };
  registry.answer = all;
  const target = new FakeTarget(3);
  await scheduler.ensure(target, 0, 2, never);
  assert.deepEqual(peer.rejections, [1]);
  assert.deepEqual(failed.map(({ span, reason }) => [span, reason]).sort(), [
    [1, 'mismatch'],
    [2, 'not-delivered'],
  ]);
  assert.deepEqual(fetched.map(({ span, source }) => [span, source]).sort(), [
    [0, 'peer'],
    [1, 'registry'],
    [2, 'registry'],
  ]);
  await scheduler.close();
});

test('a lying registry is asked once more, then the reader gets an error, and a later read starts anew', async () => {
  const { scheduler, source } = setup();
  source.answer = (call) => {
    call.deliver(0, BAD);
    call.end();
  };
  const target = new FakeTarget(1);
  await assert.rejects(scheduler.ensure(target, 0, 0, never), { name: 'LayerReadError', code: 'mismatch' });
  assert.equal(source.calls.length, 2);
  source.answer = all;
  await scheduler.ensure(target, 0, 0, never);
  await scheduler.close();
});

test('an unreachable registry is retried until the bound, then works again without a restart', async () => {
  let now = 0;
  const { scheduler, source } = setup({ now: () => now, limits: { giveUpMs: 1000 } });
  source.answer = (call) => {
    now += 300;
    call.end(new Error('connection refused'));
  };
  const target = new FakeTarget(1);
  await assert.rejects(scheduler.ensure(target, 0, 0, never), { code: 'unavailable', message: /connection refused/ });
  assert.equal(source.calls.length, 5);
  source.answer = all;
  await scheduler.ensure(target, 0, 0, never);
  await scheduler.close();
});

test('a reader that goes away ends its own wait alone', async () => {
  const { scheduler, source } = setup();
  const target = new FakeTarget(2);
  const gone = new AbortController();
  const first = scheduler.ensure(target, 0, 0, gone.signal);
  const second = scheduler.ensure(target, 0, 0, never);
  await calls(source, 1);
  gone.abort(new Error('gone'));
  await assert.rejects(first, /gone/);
  const [call] = source.calls;
  assert.ok(call);
  all(call);
  await second;
  await scheduler.close();
});

test('a span that is only wanted by a reader who has gone is not fetched', async () => {
  const { scheduler, source } = setup();
  const target = new FakeTarget(2);
  const gone = new AbortController();
  const read = scheduler.ensure(target, 0, 0, gone.signal);
  gone.abort(new Error('gone'));
  await assert.rejects(read, /gone/);
  await turn();
  await turn();
  assert.equal(source.calls.length, 0);
  await scheduler.close();
});

test('a suspect span is verified before anything is fetched, and fetched only when it has not survived', async () => {
  const { scheduler, source } = setup();
  source.answer = all;
  const target = new FakeTarget(4);
  for (const span of [0, 1, 2, 3]) target.suspected.add(span);
  await scheduler.ensure(target, 0, 3, never);
  assert.deepEqual(
    source.calls.map(({ request }) => request.first),
    [1, 3],
  );
  await scheduler.close();
});

test('an error that no other source would help reaches the readers at once', async () => {
  const { scheduler, source } = setup();
  source.answer = all;
  const target = new FakeTarget(1);
  target.store = () => Promise.reject(Object.assign(new Error('disk full'), { code: 'no-space' }));
  await assert.rejects(scheduler.ensure(target, 0, 0, never), { code: 'no-space' });
  assert.equal(source.calls.length, 1);
  await scheduler.close();
});

test('closing ends waits with an error and leaves nothing in flight', async () => {
  const { scheduler, source } = setup();
  const target = new FakeTarget(2);
  const read = scheduler.ensure(target, 0, 0, never);
  const refused = assert.rejects(read, { code: 'closed' });
  await calls(source, 1);
  await scheduler.close();
  await refused;
  assert.equal(source.calls[0]?.signal.aborted, true);
  await assert.rejects(scheduler.ensure(target, 0, 0, never), { code: 'closed' });
});

const runBytes = { demand: SPAN, prefetch: SPAN, background: SPAN };
const rated = (backgroundRate: number) => ({ backgroundRate, runBytes });

test('the background keeps to its rate', async () => {
  let now = 1000;
  const { scheduler, source } = setup({ now: () => now, limits: rated(SPAN) });
  source.answer = all;
  const target = new FakeTarget(3);
  scheduler.complete(target);
  await calls(source, 1);
  for (let i = 0; i < 5; i++) await turn();
  assert.equal(source.calls.length, 1);
  now += 1001;
  scheduler.prefetch(target, 0, 0);
  await calls(source, 2);
  await scheduler.close();
});

test('the background goes on when its pause ends between two looks at the clock', async () => {
  let ticks = 0;
  const { scheduler, source } = setup({ limits: rated(1_000 * SPAN), now: () => (ticks += 3 + (ticks % 11)) / 100 });
  source.answer = all;
  scheduler.complete(new FakeTarget(50));
  await calls(source, 50);
});

/** Of eight spans all but the first two come only together, and nothing can be told of where in the blob. */
function streamedTarget(): FakeTarget {
  const map: SpanMap = {
    ...uniformMap(8),
    blobStart: (span) => Math.min(span, 2) * SPAN,
    blobEnd: (span) => Math.min(span + 1, 2) * SPAN,
    streamOf: (span) => (span < 2 ? undefined : [2, 7]),
  };
  return new FakeTarget(8, map);
}

test('a reader of a part of a stream has all that is missing of it come, and is served when its part passes', async () => {
  const { scheduler, source, fetched } = setup();
  const target = streamedTarget();
  target.residency.add(4);
  const read = scheduler.ensure(target, 1, 5, never);
  await calls(source, 3);
  const ranges = source.calls.map(({ request }) => [request.first, request.last]);
  assert.deepEqual(ranges, [
    [1, 1],
    [2, 3],
    [5, 7],
  ]);
  const [alone, before, behind] = source.calls;
  assert.ok(alone && before && behind);
  all(alone);
  all(before);
  void behind.deliver(5);
  await read;
  assert.equal(target.has(6), false);
  await Promise.all([behind.deliver(6), behind.deliver(7)]);
  behind.end();
  assert.deepEqual(target.stored.at(-1), [7, 'background']);
  assert.equal(fetched.length, 6);
  await scheduler.close();
});

test('a stream that nobody waits for pauses as the background does, until a reader comes', async () => {
  const { scheduler, source } = setup({ limits: { quietMs: 3_600_000 }, now: () => 1000 });
  const target = streamedTarget();
  scheduler.prefetch(target, 2, 1);
  await calls(source, 1);
  const [call] = source.calls;
  assert.ok(call);
  let paused = true;
  const deliver = call.deliver(2)?.then(() => (paused = false));
  for (let i = 0; i < 5; i++) await turn();
  assert.equal(target.has(2), true);
  assert.equal(paused, true);
  const read = scheduler.ensure(target, 6, 6, never);
  await deliver;
  all(call);
  await read;
  await scheduler.close();
});

test('a stream ends when its layer is not used any more, and not while somebody waits', async () => {
  const { scheduler, source } = setup();
  const target = streamedTarget();
  const read = scheduler.ensure(target, 3, 3, never);
  await calls(source, 1);
  const [call] = source.calls;
  assert.ok(call);
  scheduler.forget(target);
  assert.equal(call.signal.aborted, false);
  void call.deliver(2);
  void call.deliver(3);
  await read;
  scheduler.forget(target);
  assert.equal(call.signal.aborted, true);
  for (let i = 0; i < 5; i++) await turn();
  assert.equal(source.calls.length, 1);
  source.answer = all;
  await scheduler.ensure(target, 7, 7, never);
  assert.deepEqual(source.calls[1]?.request.first, 4);
  await scheduler.close();
});

test('on a fast link a miss takes along what lies behind it', async () => {
  let nowMs = 0;
  const { scheduler, source } = setup({
    limits: { tailMs: 10, tailRate: 20_000, tailBytes: 3 * SPAN },
    now: () => nowMs,
  });
  const target = new FakeTarget(40);
  const read = async (span: number, tookMs: number, spans: number) => {
    const done = scheduler.ensure(target, span, span, never);
    await calls(source, source.calls.length + 1);
    const call = source.calls.at(-1);
    assert.ok(call);
    nowMs += tookMs;
    const size = spans * SPAN;
    call.deliver(span, 0, size);
    for (let next = call.request.first + 1; next <= call.request.last; next++) call.deliver(next);
    call.end();
    await done;
    await turn();
    return call.request;
  };
  // Nothing is known of the link; then 10,000 bytes per ms, which is too few.
  assert.equal((await read(0, 50, 5)).last, 0);
  assert.equal((await read(10, 1, 5)).last, 10);
  // By now some 150,000.
  const { first, last } = await read(20, 1, 5);
  assert.deepEqual([first, last], [20, 23]);
  assert.ok(target.has(23));
});

test('a reader that comes for a span that is being stored ahead of it makes it urgent', async () => {
  const { scheduler, source } = setup();
  const target = new FakeTarget(4);
  const gate = Promise.withResolvers<void>();
  target.store = async (span) => {
    await gate.promise;
    target.residency.add(span);
    return 'stored';
  };
  source.answer = all;
  scheduler.prefetch(target, 2, 1);
  await calls(source, 1);
  const read = scheduler.ensure(target, 2, 2, never);
  assert.deepEqual(target.hurried, [2]);
  gate.resolve();
  await read;
  assert.equal(source.calls.length, 1);
});
