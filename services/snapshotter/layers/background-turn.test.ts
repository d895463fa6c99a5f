import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BackgroundTurn } from './background-turn.ts';
import { FETCH_LIMITS, FetchPace } from './fetch-pace.ts';
import type { Run, SpanTask } from './span-task.ts';

const HOUR_MS = 3_600_000;

/** A pass that is to bring these spans, and its tasks by span. */
function passOf(spans: readonly number[]) {
  const tasks = new Map<number, SpanTask>();
  const run = {
    tasks,
    abort: new AbortController(),
    waitedMs: -Infinity,
    wakes: new Set<() => void>(),
  } as unknown as Run;
  for (const span of spans) {
    tasks.set(span, { span, state: 'running', run, waiters: new Set() } as unknown as SpanTask);
  }
  return { run, came: (span: number) => Object.assign(tasks.get(span) ?? {}, { state: 'storing' }) };
}

test('a pass that has brought all does not pause any more: whoever waits for its end does not wait for the background', async () => {
  const now = () => 1000;
  const turns = new BackgroundTurn(new FetchPace({ ...FETCH_LIMITS, quietMs: HOUR_MS }, now), HOUR_MS, now);
  const { run, came } = passOf([2, 3]);
  came(2);
  let isPaused = true;
  const first = turns.turn(run, 10).then(() => (isPaused = false));
  for (let i = 0; i < 5; i++) await new Promise(setImmediate);
  assert.equal(isPaused, true);
  came(3);
  await turns.turn(run, 10);
  await first;
  assert.equal(run.wakes.size, 0);
});
