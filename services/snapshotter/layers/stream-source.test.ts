import assert from 'node:assert/strict';
import { test } from 'node:test';
import { zstdCompressSync } from 'node:zlib';
import { sha256 } from '#shared/digest/digest.ts';
import type { SpanMap } from '#shared/layer/span-map.ts';
import type { BlobRanges } from './registry-source.ts';
import type { SpanBytes, SpanRequest, SpanSource } from './span-source.ts';
import { StreamSource } from './stream-source.ts';

const layer = sha256(Buffer.from('blob'));
const never = new AbortController().signal;
const SPAN = 40_000;
const SPANS = 12;
const CONTENT = Buffer.alloc(SPAN * SPANS, 0).map((_, at) => (at * 31 + (at >> 9)) & 0xff);
/** Span 0 can be had alone, the others lie inside a frame, behind which something follows. */
const FRONT = zstdCompressSync(CONTENT.subarray(0, SPAN));
const BLOB = Buffer.concat([FRONT, zstdCompressSync(CONTENT.subarray(SPAN)), Buffer.from('no zstd at all')]);

const map: SpanMap = {
  layer,
  format: 'zstd',
  blobSize: BLOB.length,
  metadataSize: 0,
  imageSize: 0,
  spanCount: SPANS,
  prioritySpans: 0,
  imageStart: () => 0,
  imageEnd: () => 0,
  blobStart: (span) => (span === 0 ? 0 : span === SPANS ? BLOB.length : FRONT.length),
  blobEnd: () => FRONT.length,
  payloadLength: () => SPAN,
  decodedLength: () => SPAN,
  streamOf: (span) => (span === 0 ? undefined : [1, SPANS - 1]),
  spansOf: () => undefined,
};

function requestOf(first: number, last: number, repositories: readonly string[] = ['r.example/a']): SpanRequest {
  const origins = repositories.map((repository) => ({ repository, layer, sizeBytes: BLOB.length, mediaType: '' }));
  return { layer, map, origins, first, last, priority: 'demand' };
}

/** Gives the blob in small pieces, each when the test lets it. */
class FakeRegistry implements BlobRanges {
  readonly asked: [repository: string, start: number][] = [];
  readonly failAt = new Map<string, number>();
  bytes = BLOB;
  /** Bytes let through. */
  #until = Infinity;
  #wake: (() => void) | undefined;

  hold(bytes: number): void {
    this.#until = bytes;
    this.#wake?.();
  }

  async *blobRange(repository: string, _digest: string, start: number, end: number, signal: AbortSignal) {
    this.asked.push([repository, start]);
    const wake = () => this.#wake?.();
    signal.addEventListener('abort', wake, { once: true });
    for (let at = start; at < Math.min(end, this.bytes.length); at += 100) {
      while (at - start >= this.#until && !signal.aborted) await new Promise<void>((resolve) => (this.#wake = resolve));
      signal.throwIfAborted();
      if (at - start >= (this.failAt.get(repository) ?? Infinity)) throw new Error('the connection broke');
      yield this.bytes.subarray(at, Math.min(at + 100, end));
    }
  }
}

const alone: SpanSource = {
  name: 'registry',
  fetch: async ({ first, last }, deliver) => {
    for (let span = first; span <= last; span++) void deliver(span, { form: 'compressed', bytes: FRONT });
  },
  rejected: () => undefined,
};

/** What was delivered, in order, each checked against the content. */
function sink() {
  const spans: number[] = [];
  let blobBytes = 0;
  return {
    spans,
    blobBytes: () => blobBytes,
    deliver: (span: number, bytes: SpanBytes) => {
      if (bytes.form === 'decoded') {
        assert.ok(Buffer.from(bytes.bytes).equals(CONTENT.subarray(span * SPAN, span * SPAN + SPAN)));
        blobBytes += bytes.blobBytes;
      }
      spans.push(span);
      return Promise.resolve();
    },
  };
}

const range = (first: number, last: number) => Array.from({ length: last - first + 1 }, (_, at) => first + at);

test('one pass brings the inside of a frame in order, from the front of the frame; what can be had alone is', async () => {
  const registry = new FakeRegistry();
  const { spans, blobBytes, deliver } = sink();
  await new StreamSource(alone, registry).fetch(requestOf(0, SPANS - 1), deliver, never);
  assert.deepEqual(spans, range(0, SPANS - 1));
  assert.deepEqual(registry.asked, [['r.example/a', FRONT.length]]);
  assert.ok(blobBytes() > 0 && blobBytes() <= BLOB.length - FRONT.length);
});

test('all who want spans that are still to come share a pass, and it ends when nobody wants more', async () => {
  const registry = new FakeRegistry();
  registry.hold(0);
  const source = new StreamSource(alone, registry);
  const [one, two] = [sink(), sink()];
  const both = [source.fetch(requestOf(3, 5), one.deliver, never), source.fetch(requestOf(2, 4), two.deliver, never)];
  registry.hold(Infinity);
  await Promise.all(both);
  assert.deepEqual(one.spans, [3, 4, 5]);
  assert.deepEqual(two.spans, [2, 3, 4]);
  assert.equal(registry.asked.length, 1);
});

test('what has passed comes with a pass of its own', async () => {
  const registry = new FakeRegistry();
  const source = new StreamSource(alone, registry);
  const late = Promise.withResolvers<void>();
  const go = Promise.withResolvers<void>();
  const first = source.fetch(
    requestOf(4, 8),
    async (span) => {
      if (span === 4) late.resolve();
      await go.promise;
    },
    never,
  );
  await late.promise;
  const { spans, deliver } = sink();
  const second = source.fetch(requestOf(1, 2), deliver, never);
  await second;
  go.resolve();
  await first;
  assert.deepEqual(spans, [1, 2]);
  assert.equal(registry.asked.length, 2);
});

test('a source that is not taken from does not run ahead', async () => {
  const registry = new FakeRegistry();
  const go = Promise.withResolvers<void>();
  let delivered = 0;
  let atOnce = 0;
  let stored = 0;
  await new StreamSource(alone, registry).fetch(
    requestOf(1, SPANS - 1),
    async () => {
      delivered++;
      if (delivered === 3) setImmediate(() => go.resolve());
      await go.promise;
      atOnce = Math.max(atOnce, delivered - stored);
      stored++;
    },
    never,
  );
  assert.ok(atOnce <= 3, `${atOnce} spans at once`);
});

test('what one repository breaks off is read from the next, and no span comes twice', async () => {
  const registry = new FakeRegistry();
  registry.failAt.set('broken.example/a', 200);
  const { spans, deliver } = sink();
  const request = requestOf(1, SPANS - 1, ['broken.example/a', 'r.example/a']);
  await new StreamSource(alone, registry).fetch(request, deliver, never);
  assert.deepEqual(spans, range(1, SPANS - 1));
  assert.deepEqual(
    registry.asked.map(([repository]) => repository),
    ['broken.example/a', 'r.example/a'],
  );
});

test('a pass that fails says why, and a later one may do better', async () => {
  const registry = new FakeRegistry();
  const source = new StreamSource(alone, registry);
  const { spans, deliver } = sink();
  registry.failAt.set('r.example/a', 0);
  await assert.rejects(source.fetch(requestOf(1, 3), deliver, never), /connection broke/);
  await assert.rejects(source.fetch(requestOf(1, 3, []), deliver, never), { name: 'NoOriginError' });
  registry.failAt.clear();
  registry.bytes = Buffer.concat([FRONT, Buffer.alloc(3000, 7)]);
  await assert.rejects(source.fetch(requestOf(1, 3), deliver, never), { name: 'WorkerError', code: 'malformed' });
  registry.bytes = BLOB.subarray(0, FRONT.length + 40);
  await assert.rejects(source.fetch(requestOf(1, 3), deliver, never), { code: 'not-in-blob' });
  registry.bytes = BLOB;
  await source.fetch(requestOf(1, 3), deliver, never);
  assert.deepEqual(spans, [1, 2, 3]);
});

test('a registry that says nothing is left for the next one', async () => {
  const registry = new FakeRegistry();
  const silent: BlobRanges = {
    blobRange: (repository, digest, start, end, signal) => {
      if (repository !== 'silent.example/a') return registry.blobRange(repository, digest, start, end, signal);
      return (async function* () {
        await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
        yield Buffer.alloc(0);
      })();
    },
  };
  const { spans, deliver } = sink();
  const source = new StreamSource(alone, silent, { silentMs: 20 });
  await source.fetch(requestOf(1, 3, ['silent.example/a', 'r.example/a']), deliver, never);
  assert.deepEqual(spans, [1, 2, 3]);
});

test('an abort ends its own wait, and the pass only where it was the last one', async () => {
  const registry = new FakeRegistry();
  registry.hold(0);
  const source = new StreamSource(alone, registry);
  const abort = new AbortController();
  const { spans, deliver } = sink();
  const gone = source.fetch(requestOf(1, 5), deliver, abort.signal);
  const stays = source.fetch(requestOf(5, 6), deliver, never);
  abort.abort(new Error('enough'));
  await assert.rejects(gone, /enough/);
  registry.hold(Infinity);
  await stays;
  assert.deepEqual(spans, [5, 6]);
  registry.hold(0);
  const last = new AbortController();
  const wait = source.fetch(requestOf(1, 1), deliver, last.signal);
  last.abort(new Error('enough'));
  await assert.rejects(wait, /enough/);
  registry.hold(Infinity);
  await source.fetch(requestOf(1, 1), deliver, never);
  assert.deepEqual(spans, [5, 6, 1]);
});
