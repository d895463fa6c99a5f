/**
 * `node infra/demo-cluster.ts`: a whole cluster on this machine. A registry, NATS, Redis, gateway, indexer, distributor and three
 * nodes, each with a containerd of its own. An image is pushed; the nodes get it by the event alone, and then start it at the same
 * moment. Prints what each of them took from the registry and from the others. Leaves nothing behind.
 *
 * It is also the example to read for which process needs which settings.
 */
import { resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { TestNats } from '#test/harness/nats.ts';
import { TestNode } from '#test/harness/node.ts';
import { dropCaches } from '#test/harness/page-cache.ts';
import { startUntilReady } from '#test/harness/readiness.ts';
import { TestRedis } from '#test/harness/redis.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { freePort } from '#test/harness/server-process.ts';
import { startService } from '#test/harness/service-process.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { testImage } from '#test/images/image-cache.ts';
import { recipeOf } from '#test/images/recipe.ts';
import { runTool } from '#test/images/tool.ts';

const KINDLING = resolve(import.meta.dirname, '../services/cli/kindling.sh');
const TOKEN = 'a-token-of-at-least-16-characters';
const PULLED_MS = 120_000;
const MAX_NODES = 8;

const { values } = parseArgs({
  options: { image: { type: 'string', default: 'perl' }, nodes: { type: 'string', default: '3' } },
});
const nodeCount = Number(values.nodes);
if (!(Number.isInteger(nodeCount) && nodeCount >= 1 && nodeCount <= MAX_NODES)) {
  console.error(`usage: node infra/demo-cluster.ts [--image NAME] [--nodes 1..${MAX_NODES}]`);
  process.exit(2);
}
if (process.getuid?.() !== 0) {
  console.error('The demo mounts file systems and starts containers: run it as root');
  process.exit(1);
}
await demo(AbortSignal.timeout(1_800_000));

async function demo(signal: AbortSignal): Promise<void> {
  const recipe = recipeOf(values.image);
  const image = await testImage(recipe.name, signal);
  const totalBytes = await image.layerBytes();
  await using folder = await TempFolder.create('dc');

  say('starting NATS, Redis and a registry that tells the gateway of each push');
  await using nats = await TestNats.start(folder.join('nats'), signal);
  await using redis = await TestRedis.start(signal);
  const port = await freePort();
  const url = `http://127.0.0.1:${port}/v1/registry-events`;
  await using registry = await TestRegistry.start({ folder: folder.path, notify: [{ url, token: TOKEN }] }, signal);

  say('starting gateway, indexer and distributor');
  const gateway = {
    NATS_URL: nats.url,
    KINDLING_GATEWAY_LISTEN: `127.0.0.1:${port}`,
    KINDLING_GATEWAY_TOKENS: TOKEN,
    KINDLING_GATEWAY_REGISTRIES: registry.host,
  };
  const indexer = { NATS_URL: nats.url };
  const distributor = {
    NATS_URL: nats.url,
    REDIS_URL: redis.url,
    KINDLING_DISTRIBUTOR_REGISTRIES: registry.host,
  };
  await using services = new AsyncDisposableStack();
  services.use(await startService('gateway', gateway, port, signal));
  services.use(await startService('indexer', indexer, undefined, signal));
  services.use(await startService('distributor', distributor, undefined, signal));

  say(`starting ${nodeCount} nodes, each with its containerd`);
  await using closing = new AsyncDisposableStack();
  const nodes: TestNode[] = [];
  for (let i = 1; i <= nodeCount; i++)
    nodes.push(closing.use(await TestNode.start(await nodeSettings(nats, i), signal)));

  say(`pushing ${recipe.name}; from here on nobody tells the nodes anything`);
  const pushedMs = performance.now();
  const reference = await registry.push(image, recipe.name, 'v1', signal);
  await Promise.all(nodes.map(async (node) => await untilPulled(node, reference, signal)));
  say(`all nodes have the image, ${((performance.now() - pushedMs) / 1000).toFixed(1)} s after the push began`);

  say('starting it on all nodes at the same moment');
  await dropCaches(signal);
  const starts = await Promise.all(
    nodes.map(async (node) => await startUntilReady(node.containerd, reference, recipe, 'kindling', signal)),
  );
  console.log('\n  node      ready   from the registry   from other nodes');
  let fromRegistry = 0;
  for (const [i, node] of nodes.entries()) {
    const layers = await node.kindling.client.layers(signal);
    const sum = (source: 'registry' | 'peer') =>
      layers.reduce((bytes, layer) => bytes + layer.bytesBySource[source], 0);
    fromRegistry += sum('registry');
    const ready = `${((starts[i]?.readyMs ?? 0) / 1000).toFixed(2)} s`;
    console.log(
      `  node-${i + 1}  ${ready.padStart(7)}   ${mebibytes(sum('registry')).padStart(17)}   ${mebibytes(sum('peer')).padStart(16)}`,
    );
  }
  console.log(
    `\n  the image has ${mebibytes(totalBytes)}; all nodes together took ${mebibytes(fromRegistry)} from the registry`,
  );
  console.log('\nkindling cluster:\n');
  console.log(await runTool(KINDLING, ['cluster', '--nats', nats.url], signal));
  say('removing everything');
}

/** All that a node of a cluster needs besides what a lone one does. */
async function nodeSettings(nats: TestNats, number: number): Promise<Readonly<Record<string, string>>> {
  return {
    NATS_URL: nats.url,
    KINDLING_NODE_NAME: `node-${number}`,
    // On machines of their own the default is right: all addresses, port 8461.
    KINDLING_PEER_LISTEN: `127.0.0.1:${await freePort()}`,
    // For this demo only: what the table shows is then what the start has read.
    KINDLING_BACKGROUND: 'false',
  };
}

async function untilPulled(node: TestNode, reference: string, signal: AbortSignal): Promise<void> {
  const bounded = AbortSignal.any([signal, AbortSignal.timeout(PULLED_MS)]);
  while (!(await node.containerd.ctr(['images', 'list', '--quiet'], bounded)).includes(reference)) {
    await sleep(100, undefined, { signal: bounded });
  }
}

function mebibytes(bytes: number): string {
  return `${(bytes / 1_048_576).toFixed(1)} MiB`;
}

function say(text: string): void {
  console.log(`demo: ${text}`);
}
