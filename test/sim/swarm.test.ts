import assert from 'node:assert/strict';
import { test } from 'node:test';
import { simulateSwarm } from './swarm.ts';

const STARTUP_SET = 428e6 * 0.16;

test('50 nodes that start at once have their startup set within 1.5 of what equal links allow, at one registry read', () => {
  const result = simulateSwarm({ nodes: 50, bytes: STARTUP_SET, spanBytes: 512 * 1024, bytesPerS: 125e6 });
  assert.equal(result.registryReads, result.spans);
  assert.ok(result.ratio < 1.5, `last node after ${result.ratio} of the bound`);
  assert.ok(result.perNode.distributorMessages < 2 * result.spans, JSON.stringify(result.perNode));
});

test('nodes with slow links hold up nobody for long, and make the registry be read little more often', () => {
  const set = { nodes: 40, bytes: STARTUP_SET, spanBytes: 512 * 1024, bytesPerS: 125e6 };
  // They would take nine minutes for all of it, and four seconds for a span. Eight of them have all leases at first.
  for (const [nodes, withinS] of [
    [4, 4],
    [8, 12],
  ] as const) {
    const { lastS, registryReads, spans } = simulateSwarm({ ...set, slow: { nodes, bytesPerS: 125e3 } });
    assert.ok(lastS < withinS, `${nodes}: last node after ${lastS} s`);
    assert.ok(registryReads <= 1.25 * spans, `${nodes}: ${registryReads} reads of ${spans} spans`);
  }
});

test('the simulation of a seed is always the same', () => {
  const options = { nodes: 12, bytes: 8e6, spanBytes: 512 * 1024, bytesPerS: 125e6, seed: 7 };
  assert.deepEqual(simulateSwarm(options), simulateSwarm(options));
});

test('one node alone reads everything from the registry, at the rate of its link', () => {
  const result = simulateSwarm({ nodes: 1, bytes: 8e6, spanBytes: 512 * 1024, bytesPerS: 125e6 });
  assert.equal(result.registryReads, result.spans);
  assert.equal(result.perNode.peerRequests, 0);
  assert.ok(result.ratio < 1.5, String(result.ratio));
});
