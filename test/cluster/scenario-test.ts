import assert from 'node:assert/strict';
import { test } from 'node:test';
import { playOut, type Scenario } from './fault-scenarios.ts';
import { sharedLayer } from './shared-layer.ts';
import { TestCluster } from './test-cluster.ts';

const NODES = 4;
const LINK = { bitsPerS: 100_000_000 };
const SPANS = 16;
const SPAN_BYTES = 250_000;
/** Whatever happens a start has ended after this; the bench measures how soon. */
const ENDED_S = 60;

/** A test of one cluster in which the scenarios are played one after the other, each with a layer that nobody has yet. */
export function testScenarios(name: string, scenarios: readonly Scenario[], distributors: number): void {
  const skip = process.getuid?.() === 0 ? false : 'needs root';
  test(name, { skip }, async (t) => {
    const { signal } = t;
    const layers = await Promise.all(scenarios.map(async () => await sharedLayer(SPANS, SPAN_BYTES, signal)));
    await using cluster = await TestCluster.start({ nodes: NODES, link: LINK, layers, distributors }, signal);
    for (const [i, scenario] of scenarios.entries()) {
      await t.test(scenario.name, async () => {
        const layer = layers[i];
        assert.ok(layer);
        const { lastS, registryReads, allowed, details } = await playOut(scenario, cluster, layer, LINK, signal);
        assert.ok(lastS < ENDED_S, `the slowest start took ${lastS} s: ${details}`);
        assert.ok(
          registryReads <= allowed,
          `the registry gave ${registryReads} of the layer, not ${allowed}: ${details}`,
        );
      });
    }
  });
}
