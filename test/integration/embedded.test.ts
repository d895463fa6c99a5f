import assert from 'node:assert/strict';
import { fileURLToPath } from 'node:url';
import { test } from 'node:test';
import { TestNode } from '#test/harness/node.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { freePort, isListening } from '#test/harness/server-process.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { tinyImage, tinyProgram } from '#test/harness/tiny-image.ts';
import { until } from '#test/harness/until.ts';
import { runTool } from '#test/images/tool.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';
const FLAGS = ['--disable-warning=ExperimentalWarning'];
const MAIN = fileURLToPath(new URL('../../services/cli/main.ts', import.meta.url));
const TOKEN = 'token-of-the-test-platform';

test('one process takes events, indexes what is pushed or deployed and pulls it, with no server beside it', {
  skip,
}, async (t) => {
  const { signal } = t;
  await using folder = await TempFolder.create('e');
  const port = await freePort();
  const url = `http://127.0.0.1:${port}/v1`;
  await using registry = await TestRegistry.start(
    { folder: folder.path, notify: [{ url: `${url}/registry-events`, token: TOKEN }] },
    signal,
  );
  const node = await TestNode.start(
    {
      KINDLING_GATEWAY_LISTEN: `127.0.0.1:${port}`,
      KINDLING_GATEWAY_TOKENS: TOKEN,
      KINDLING_GATEWAY_REGISTRIES: registry.host,
      KINDLING_INDEXER_REGISTRIES: `${registry.host}/team/*`,
    },
    signal,
  );
  const log = () => node.kindling.log;
  try {
    await until(async () => await isListening({ port }), signal, log);
    // Plain gzip and nothing else: without an index there is nothing lazy about it.
    const pushed = await tinyImage(
      folder.join('pushed'),
      [{ 'usr/share/data': 'x'.repeat(300_000) }, { 'bin/hello': tinyProgram('hello from one process\n', 0) }],
      ['/bin/hello'],
      signal,
    );
    const first = await registry.push(pushed, 'team/hello', 'v1', signal);
    await until(async () => await hasImage(node, first, signal), signal, log);
    const run = await node.containerd.run(first, { snapshotter: 'kindling' }, signal);
    assert.equal(run.output, 'hello from one process\n', node.kindling.log);
    assert.equal(run.code, 0);
    const layers = await node.kindling.client.layers(signal);
    assert.equal(layers.length, 2, node.kindling.log);

    // The agent is killed: what was taken in is kept, and the next one takes events again.
    const deployed = await tinyImage(
      folder.join('deployed'),
      [{ 'bin/later': tinyProgram('deployed\n', 0) }],
      ['/bin/later'],
      signal,
    );
    const lost = 'kindling-pull-of-an-earlier-agent';
    await node.containerd.ctr(['leases', 'create', '--id', lost], signal);
    const old = await node.kindling.killAgent();
    await node.kindling.untilServing(old, signal);
    const leases = async () => await node.containerd.ctr(['leases', 'list', '--quiet'], signal);
    await until(async () => !(await leases()).includes(lost), signal, log);
    const second = await registry.push(deployed, 'team/later', 'v1', signal);
    await until(async () => await isListening({ port }), signal, log);
    const gateway = ['--gateway', `http://127.0.0.1:${port}`];
    const env = { ...process.env, KINDLING_GATEWAY_TOKENS: TOKEN };
    const kindling = async (...args: readonly string[]) =>
      await runTool(process.execPath, [...FLAGS, MAIN, ...args], signal, { env });
    await kindling('deploy', ...gateway, second);
    await until(async () => await hasImage(node, second, signal), signal, log);
    const later = await node.containerd.run(second, { snapshotter: 'kindling' }, signal);
    assert.equal(later.output, 'deployed\n', node.kindling.log);

    // Not among the repositories that are indexed: it is a dead letter at once.
    const refused = registry.reference('elsewhere/hello');
    await kindling('deploy', ...gateway, refused);
    const dead = ['events', 'dead', '--control-socket', node.kindling.controlSocket];
    const list = async () => JSON.parse(await kindling(...dead, '--json')) as { id: string; image: string }[];
    await until(async () => (await list()).length === 1, signal, log);
    const [letter] = await list();
    assert.equal(letter?.image, refused);
    assert.match(await kindling(...dead), /function\.deployed .*elsewhere\/hello.* KINDLING_INDEXER_REGISTRIES/);
    assert.equal(await kindling(...dead, '--retry', 'all'), '1 put back, 0 dropped\n');
    await until(async () => (await list()).some(({ id }) => id !== letter?.id), signal, log);
    assert.equal(await kindling(...dead, '--drop', 'all'), '0 put back, 1 dropped\n');
    assert.equal(await kindling(...dead), 'No dead letters\n');
  } finally {
    await node[Symbol.asyncDispose]();
  }
});

async function hasImage(node: TestNode, reference: string, signal: AbortSignal): Promise<boolean> {
  return (await node.containerd.ctr(['images', 'list', '--quiet'], signal)).includes(reference);
}
