import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { DISTRIBUTION_VERSION, encodeMessage, SUBJECTS } from '#shared/distribution/messages.ts';
import { CountedRegistry } from './counted-registry.ts';
import { localCluster } from './local-cluster.ts';
import { flipBits } from './misbehaviour.ts';
import { sharedLayer } from './shared-layer.ts';

test('a peer that several nodes report is a suspect, and nobody becomes one by what it cannot prove', async ({
  signal,
}) => {
  const layer = await sharedLayer(12, 300_000, signal);
  await using registry = await CountedRegistry.start([layer]);
  await using cluster = await localCluster(signal);
  const reference = registry.reference(layer);
  const node = async (i: number) => await cluster.node({ env: { KINDLING_PEER_LISTEN: `127.0.0.${i}:0` } });
  const liar = await node(1);
  await liar.fetchAll(reference, signal);
  const expected = await liar.imageDigest(layer.digest, signal);
  flipBits(liar, layer.digest);
  const honest = [await node(2), await node(3), await node(4)];
  const forged = async (name: string, capability: string): Promise<void> => {
    const message = { kind: 'bad', node: name, layer: layer.digest, suspect: honest[0]?.peers.link.record.node };
    const bytes = encodeMessage({ version: DISTRIBUTION_VERSION, ...message, reporter: capability });
    cluster.bus.messages.send(SUBJECTS.update, bytes);
    await sleep(0);
  };
  // One after the other: each takes the first spans from the liar, since what the liar has has not been read here yet.
  for (const one of honest) {
    await one.fetchAll(reference, signal);
    assert.equal(await one.imageDigest(layer.digest, signal), expected);
  }
  const joined = await honest[1]?.peers.link.join(
    { layer: layer.digest, spanCount: 12, have: '', repository: `${registry.host}/app` },
    signal,
  );
  assert.ok(joined?.outcome === 'joined');
  const names = [liar, ...honest].map(({ peers }) => peers.link.record.node);
  for (const name of names) {
    await forged(name, joined.capability);
    await forged(name, name === names[2] ? 'a.b' : joined.reporter);
  }
  for (;;) {
    const { nodes } = await cluster.view();
    const suspects = nodes.flatMap(({ record, suspected }) => (suspected ? [record.node] : []));
    assert.ok(suspects.every((name) => name === names[0]));
    if (suspects.length > 0) break;
    await sleep(50, undefined, { signal });
  }
  const counted = await cluster.distributorMetrics.getSingleMetric('kindling_distributor_reports_total')?.get();
  const refused = counted?.values.find(({ labels }) => labels['outcome'] === 'refused')?.value;
  assert.equal(refused, 2 * names.length);
});
