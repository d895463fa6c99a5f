import assert from 'node:assert/strict';
import { test } from 'node:test';
import { NatsBus } from '#shared/bus/nats-bus.ts';
import { ClusterIndexes } from '#shared/indexes/cluster-indexes.ts';
import { INDEX_ARTIFACT_TYPE } from '#shared/indexes/registry-indexes.ts';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { TestNats } from '#test/harness/nats.ts';
import { TestNode } from '#test/harness/node.ts';
import { freePort } from '#test/harness/server-process.ts';
import { startService } from '#test/harness/service-process.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { tinyImage, tinyProgram } from '#test/harness/tiny-image.ts';
import { until } from '#test/harness/until.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';
const TOKEN = 'token-of-the-test-registry';

test('an image that is pushed is ready to start on a node that did nothing else, also after the node was down', {
  skip,
}, async (t) => {
  const { signal } = t;
  await using folder = await TempFolder.create('p');
  await using nats = await TestNats.start(folder.join('nats'), signal);
  const port = await freePort();
  const url = `http://127.0.0.1:${port}/v1/registry-events`;
  await using registry = await TestRegistry.start({ folder: folder.path, notify: [{ url, token: TOKEN }] }, signal);
  await using gateway = await startService(
    'gateway',
    {
      NATS_URL: nats.url,
      KINDLING_GATEWAY_LISTEN: `127.0.0.1:${port}`,
      KINDLING_GATEWAY_TOKENS: TOKEN,
      KINDLING_GATEWAY_REGISTRIES: registry.host,
    },
    port,
    signal,
  );
  await using indexer = await startService(
    'indexer',
    { NATS_URL: nats.url, KINDLING_INDEXER_PUSH: 'true' },
    undefined,
    signal,
  );
  const logs = () => `gateway:\n${gateway.log}\nindexer:\n${indexer.log}`;

  const first = await tinyImage(
    folder.join('first'),
    [{ 'usr/share/data': 'x'.repeat(300_000) }, { 'bin/hello': tinyProgram('hello from a lazy layer\n', 0) }],
    ['/bin/hello'],
    signal,
  );
  const node = await TestNode.start({ NATS_URL: nats.url, KINDLING_NODE_NAME: 'node.one' }, signal);
  try {
    const pushed = await registry.push(first, 'team/hello', 'v1', signal);
    await untilImage(node, pushed, signal, logs);
    const run = await node.containerd.run(pushed, { snapshotter: 'kindling' }, signal);
    assert.equal(run.code, 0, `${run.output}\n${node.kindling.log}`);
    assert.equal(run.output, 'hello from a lazy layer\n');
    const layers = await node.kindling.client.layers(signal);
    assert.equal(layers.length, 2);

    // The cluster has the indexes, and the registry too, found by whoever pulls from it.
    await using bus = new NatsBus({ url: nats.url, clientName: 'test', logger: silentLogger });
    const indexes = new ClusterIndexes(bus);
    const { manifest, digest } = await first.manifest();
    for (const layer of manifest.layers) assert.equal(await indexes.has(layer.digest, signal), true);
    await registryHasIndexes(registry, digest, signal);

    // What is announced while the node is down is there when it is back.
    await node.kindling.stop();
    const second = await tinyImage(
      folder.join('second'),
      [{ 'bin/again': tinyProgram('again\n', 0) }],
      ['/bin/again'],
      signal,
    );
    const later = await registry.push(second, 'team/again', 'v1', signal);
    const layer = (await second.manifest()).manifest.layers[0];
    assert.ok(layer);
    await until(async () => await indexes.has(layer.digest, signal), signal, logs);
    await node.kindling.startAgain(signal);
    await untilImage(node, later, signal, logs);
    const again = await node.containerd.run(later, { snapshotter: 'kindling' }, signal);
    assert.equal(again.output, 'again\n');
  } finally {
    await node[Symbol.asyncDispose]();
  }
});

async function untilImage(node: TestNode, reference: string, signal: AbortSignal, logs: () => string): Promise<void> {
  await until(
    async () => (await node.containerd.ctr(['images', 'list', '--quiet'], signal)).includes(reference),
    signal,
    logs,
  );
}

/** Under the fallback tag: this registry has no referrers API. */
async function registryHasIndexes(registry: TestRegistry, manifest: string, signal: AbortSignal): Promise<void> {
  const tag = manifest.replace(':', '-');
  const headers = { accept: 'application/vnd.oci.image.index.v1+json' };
  await until(
    async () => {
      const answer = await fetch(`http://${registry.host}/v2/team/hello/manifests/${tag}`, { headers, signal });
      const text = await answer.text();
      return answer.ok && text.includes(INDEX_ARTIFACT_TYPE);
    },
    signal,
    () => registry.log,
  );
}
