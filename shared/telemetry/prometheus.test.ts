import assert from 'node:assert/strict';
import { test } from 'node:test';
import { collectDefaultMetrics, Registry as WholeRegistry } from 'prom-client';
import { createMetrics } from './metrics.ts';

const namesOf = async (registry: WholeRegistry): Promise<string[]> =>
  (await registry.getMetricsAsJSON()).map(({ name }) => name).sort();

test('the process has the same metrics as with all of prom-client', async () => {
  const whole = new WholeRegistry();
  collectDefaultMetrics({ register: whole });
  assert.deepEqual(await namesOf(createMetrics()), await namesOf(whole));
});

test('processor time only grows, and is the sum of its parts', async () => {
  const registry = createMetrics();
  const valueOf = async (name: string): Promise<number> => {
    const metric = (await registry.getMetricsAsJSON()).find((one) => one.name === name);
    return Number(metric?.values[0]?.value);
  };
  const before = await valueOf('process_cpu_seconds_total');
  const user = await valueOf('process_cpu_user_seconds_total');
  const system = await valueOf('process_cpu_system_seconds_total');
  const after = await valueOf('process_cpu_seconds_total');
  assert.ok(before > 0 && before <= user + system && user + system <= after);
});
