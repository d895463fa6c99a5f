import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { paced } from './body-pace.ts';

/** Reads chunks that come after so long each, and takes so long over each. */
async function read(chunks: readonly (readonly [bytes: number, afterMs: number])[], overEachMs = 0): Promise<number> {
  let nowMs = 0;
  async function* body(): AsyncGenerator<Buffer> {
    for (const [bytes, afterMs] of chunks) {
      nowMs += afterMs;
      yield Buffer.alloc(bytes);
    }
  }
  let total = 0;
  const slow = () => new Error('too slow');
  for await (const chunk of paced(body(), slow, { bytes: 100, ms: 1000 }, () => nowMs)) {
    total += chunk.length;
    nowMs += overEachMs;
  }
  return total;
}

suite('the pace of a body', () => {
  test('a byte now and then is too slow', async () => {
    await assert.rejects(read(Array.from({ length: 200 }, () => [1, 20])), /too slow/);
    // Fast at first is no licence for later.
    await assert.rejects(
      read([[10_000, 0], [1, 1000], ...Array.from({ length: 99 }, () => [1, 20] as const)]),
      /too slow/,
    );
  });

  test('a slow link is not, nor one that pauses, nor a slow reader', async () => {
    assert.equal(await read(Array.from({ length: 200 }, () => [10, 99])), 2000);
    assert.equal(
      await read([
        [1, 999],
        [200, 500],
        [1, 999],
      ]),
      202,
    );
    assert.equal(
      await read(
        Array.from({ length: 200 }, () => [1, 0]),
        5000,
      ),
      200,
    );
  });
});
