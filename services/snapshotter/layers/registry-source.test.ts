import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { sha256 } from '#shared/digest/digest.ts';
import type { SpanMap } from '#shared/layer/span-map.ts';
import { RegistrySource } from './registry-source.ts';
import type { SpanRequest } from './span-source.ts';

const layer = sha256(Buffer.from('blob'));
const never = new AbortController().signal;

/** Spans [start, end) of the blob. */
function mapOf(ranges: readonly (readonly [number, number])[]): SpanMap {
  return {
    layer,
    format: 'gzip',
    blobSize: 1e6,
    metadataSize: 0,
    imageSize: 0,
    spanCount: ranges.length,
    prioritySpans: 0,
    imageStart: () => 0,
    imageEnd: () => 0,
    blobStart: (span) => ranges[span]?.[0] ?? 0,
    blobEnd: (span) => ranges[span]?.[1] ?? 0,
    payloadLength: () => 0,
    decodedLength: () => 0,
    streamOf: () => undefined,
    spansOf: () => undefined,
  };
}

const blob = Uint8Array.from({ length: 5000 }, (_, at) => (at * 7 + (at >> 8)) & 0xff);

function requestOf(map: SpanMap, repositories: readonly string[]): SpanRequest {
  const origins = repositories.map((repository) => ({ repository, layer, sizeBytes: blob.length, mediaType: '' }));
  return { layer, map, origins, first: 0, last: map.spanCount - 1, priority: 'demand' };
}

test('spans come out whole however the answer is cut, also where they share a byte or leave a gap', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.record({ length: fc.integer({ min: 1, max: 300 }), step: fc.integer({ min: -1, max: 5 }) }), {
        minLength: 1,
        maxLength: 12,
      }),
      fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 1, maxLength: 6 }),
      async (spans, cuts) => {
        const ranges: [number, number][] = [];
        let at = 10;
        for (const { length, step } of spans) {
          at = Math.max(ranges.at(-1)?.[0] ?? 0, at + step);
          ranges.push([at, at + length + 1]);
          at += length + 1;
        }
        const got = new Map<number, Uint8Array>();
        const source = new RegistrySource({
          async *blobRange(_repository, _digest, start, end) {
            for (let from = start, turn = 0; from < end; turn++) {
              const to = Math.min(end, from + (cuts[turn % cuts.length] ?? 1));
              yield await Promise.resolve(blob.subarray(from, to));
              from = to;
            }
          },
        });
        await source.fetch(
          requestOf(mapOf(ranges), ['r.example/a']),
          (span, { bytes }) => {
            assert.equal(got.has(span), false);
            got.set(span, bytes);
          },
          never,
        );
        assert.deepEqual(
          [...got.keys()],
          ranges.map((_, span) => span),
        );
        for (const [span, bytes] of got) assert.deepEqual([...bytes], [...blob.subarray(...(ranges[span] ?? [0, 0]))]);
      },
    ),
    { numRuns: 100 },
  );
});

test('what one repository breaks off is taken up from the next, without a span twice', async () => {
  const map = mapOf([
    [0, 100],
    [100, 200],
    [200, 300],
  ]);
  const asked: [string, number][] = [];
  const source = new RegistrySource({
    async *blobRange(repository, _digest, start, end) {
      asked.push([repository, start]);
      if (repository === 'gone.example/a') {
        yield blob.subarray(start, start + 150);
        throw new Error('connection reset');
      }
      yield await Promise.resolve(blob.subarray(start, end));
    },
  });
  const got: number[] = [];
  await source.fetch(requestOf(map, ['gone.example/a', 'here.example/a']), (span) => void got.push(span), never);
  assert.deepEqual(got, [0, 1, 2]);
  assert.deepEqual(asked, [
    ['gone.example/a', 0],
    ['here.example/a', 100],
  ]);
});

test('a layer without a repository says so', async () => {
  const source = new RegistrySource({
    async *blobRange() {
      yield await Promise.resolve(blob);
    },
  });
  await assert.rejects(
    source.fetch(requestOf(mapOf([[0, 1]]), []), () => {}, never),
    { name: 'NoOriginError' },
  );
});

test('a registry that says nothing is left for the next one', async () => {
  const map = mapOf([
    [0, 100],
    [100, 200],
  ]);
  const source = new RegistrySource(
    {
      async *blobRange(repository, _digest, start, end, signal) {
        if (repository === 'silent.example/a') {
          yield blob.subarray(start, start + 100);
          await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason as Error)));
        }
        yield await Promise.resolve(blob.subarray(start, end));
      },
    },
    { silentMs: 20 },
  );
  const got: number[] = [];
  await source.fetch(requestOf(map, ['silent.example/a', 'here.example/a']), (span) => void got.push(span), never);
  assert.deepEqual(got, [0, 1]);
  await assert.rejects(
    source.fetch(requestOf(map, ['silent.example/a']), () => {}, never),
    {
      name: 'SilentRegistryError',
    },
  );
});
