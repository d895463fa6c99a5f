import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import type { CredentialSource } from '#shared/registry/credentials.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { runTool } from '#test/images/tool.ts';
import { CountedRegistry } from './counted-registry.ts';
import { localCluster } from './local-cluster.ts';
import { flipBits, misbehave } from './misbehaviour.ts';
import { sharedLayer } from './shared-layer.ts';

const NO_OPENSSL = spawnSync('openssl', ['version'], { stdio: 'ignore' }).error ? 'openssl is not installed' : false;

/** Files of a CA and of one certificate for 127.0.0.1, as the settings name them. */
async function certificates(folder: string, signal: AbortSignal): Promise<Record<string, string>> {
  const at = (name: string): string => `${folder}/${name}.pem`;
  const openssl = async (...args: readonly string[]) => await runTool('openssl', args, signal, { cwd: folder });
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2'];
  await openssl('req', '-x509', ...key, '-subj', '/CN=test CA', '-keyout', at('ca-key'), '-out', at('ca'));
  const signing = ['-CA', at('ca'), '-CAkey', at('ca-key'), '-addext', 'subjectAltName=IP:127.0.0.1'];
  await openssl('req', '-x509', ...key, ...signing, '-subj', '/CN=node', '-keyout', at('key'), '-out', at('cert'));
  return {
    KINDLING_PEER_TLS_CA: at('ca'),
    KINDLING_PEER_TLS_CERT: at('cert'),
    KINDLING_PEER_TLS_KEY: at('key'),
  };
}

test('a burst of nodes costs the registry one read of each span, and all get the same bytes', async ({ signal }) => {
  const layer = await sharedLayer(24, 400_000, signal);
  await using registry = await CountedRegistry.start([layer]);
  await using cluster = await localCluster(signal);
  const nodes = await Promise.all(Array.from({ length: 6 }, async () => await cluster.node()));
  const reference = registry.reference(layer);
  await Promise.all(nodes.map(async (node) => await node.provide(reference, signal)));
  const before = registry.bytes;
  await Promise.all(nodes.map(async (node) => await node.fetchAll(reference, signal)));
  const amplification = (registry.bytes - before) / layer.blob.length;
  const digests = new Set(await Promise.all(nodes.map(async (node) => await node.imageDigest(layer.digest, signal))));
  assert.equal(digests.size, 1);
  const figures = await Promise.all(
    nodes.map(async (node) => [
      await node.metric('kindling_peer_received_bytes_total'),
      await node.metric('kindling_peer_registry_spans_total'),
      await node.metric('kindling_peer_hedged_total'),
    ]),
  );
  assert.ok(amplification < 1.2, `the registry was read ${amplification} times: ${JSON.stringify(figures)}`);
});

test('a node that comes later takes everything from the others, and one without a distributor from the registry', async ({
  signal,
}) => {
  const layer = await sharedLayer(8, 300_000, signal);
  await using registry = await CountedRegistry.start([layer]);
  await using cluster = await localCluster(signal);
  const reference = registry.reference(layer);
  const first = await cluster.node();
  await first.fetchAll(reference, signal);
  const second = await cluster.node();
  await second.provide(reference, signal);
  const before = registry.bytes;
  await second.fetchAll(reference, signal);
  assert.equal(registry.bytes, before);
  assert.equal(await second.imageDigest(layer.digest, signal), await first.imageDigest(layer.digest, signal));
  assert.equal(second.statistics.figures(layer.digest).bytesBySource.peer, 8 * 300_000);

  await cluster.stopDistributor();
  const third = await cluster.node();
  await third.fetchAll(reference, signal);
  assert.equal(third.statistics.figures(layer.digest).bytesBySource.peer, 0);
  assert.equal(await third.imageDigest(layer.digest, signal), await first.imageDigest(layer.digest, signal));
});

test('what a lying peer sends is never served: it is blocked, and the bytes come from elsewhere', async ({
  signal,
}) => {
  const layer = await sharedLayer(6, 300_000, signal);
  await using registry = await CountedRegistry.start([layer]);
  await using cluster = await localCluster(signal);
  const reference = registry.reference(layer);
  const liar = await cluster.node();
  await liar.fetchAll(reference, signal);
  const expected = await liar.imageDigest(layer.digest, signal);
  flipBits(liar, layer.digest);
  const node = await cluster.node();
  await node.fetchAll(reference, signal);
  assert.equal(await node.imageDigest(layer.digest, signal), expected);
  assert.ok((await node.metric('kindling_peer_bad_total')) >= 1);
  assert.equal(node.statistics.figures(layer.digest).bytesBySource.peer, 0);
});

test('a reader gets its bytes when the peer that has them stalls', async ({ signal }) => {
  const layer = await sharedLayer(4, 300_000, signal);
  await using registry = await CountedRegistry.start([layer]);
  await using cluster = await localCluster(signal);
  const reference = registry.reference(layer);
  const stalled = await cluster.node();
  await stalled.fetchAll(reference, signal);
  misbehave(stalled, layer.digest, 'stalls');
  const node = await cluster.node();
  await node.provide(reference, signal);
  assert.equal(await node.imageDigest(layer.digest, signal), await stalled.imageDigest(layer.digest, signal));
});

test('spans of a private layer are given only to nodes that could pull it', async ({ signal }) => {
  const layer = await sharedLayer(4, 100_000, signal);
  const basic = (text: string) => `Basic ${Buffer.from(text).toString('base64')}`;
  await using registry = await CountedRegistry.start([layer], basic('me:secret'));
  await using cluster = await localCluster(signal, [registry.host]);
  const reference = registry.reference(layer, 'private');
  const credentials: CredentialSource = {
    credential: () => Promise.resolve({ kind: 'password', username: 'me', password: 'secret' }),
  };
  const owner = await cluster.node({ credentials });
  await owner.fetchAll(reference, signal);
  const stranger = await cluster.node();
  const join = async (authorization: string | undefined, repository = `${registry.host}/private`) =>
    await stranger.peers.link.join(
      {
        layer: layer.digest,
        spanCount: 4,
        have: '',
        repository,
        ...(authorization === undefined ? {} : { authorization }),
      },
      signal,
    );
  for (const authorization of [undefined, basic('me:wrong')]) {
    const refused = await join(authorization);
    assert.equal(refused.outcome, 'refused');
  }
  assert.equal((await join(basic('me:secret'), 'other.example/private')).outcome, 'refused');
  const url = `http://127.0.0.1:${owner.peers.server.port}/v1/layers/${layer.digest}/spans/0`;
  const get = async (capability: string) =>
    await fetch(url, { headers: { authorization: `Kindling ${capability}` }, signal });
  assert.equal((await get('nothing.valid')).status, 401);
  const joined = await join(basic('me:secret'));
  assert.ok(joined.outcome === 'joined');
  const given = await get(joined.capability);
  assert.equal(given.status, 200);
  assert.ok((await given.arrayBuffer()).byteLength > 8);
  const forged = joined.capability.slice(0, -4) + (joined.capability.endsWith('AAAA') ? 'BBBB' : 'AAAA');
  assert.equal((await get(forged)).status, 401);
});

test('nodes with certificates share by mutual TLS, and answer nobody without one', { skip: NO_OPENSSL }, async ({
  signal,
}) => {
  const layer = await sharedLayer(4, 100_000, signal);
  await using registry = await CountedRegistry.start([layer]);
  await using folder = await TempFolder.create('c');
  const env = await certificates(folder.path, signal);
  await using cluster = await localCluster(signal);
  const reference = registry.reference(layer);
  const first = await cluster.node({ env });
  await first.fetchAll(reference, signal);
  const second = await cluster.node({ env });
  await second.fetchAll(reference, signal);
  assert.equal(second.statistics.figures(layer.digest).bytesBySource.peer, 4 * 100_000);
  const bare = await cluster.node();
  await bare.fetchAll(reference, signal);
  assert.equal(bare.statistics.figures(layer.digest).bytesBySource.peer, 0);
});
