/**
 * A sharing node as a process of its own: `node-main.ts FOLDER NAME NATS-URL ADDRESS REGISTRY-HOST`. Takes orders over a unix socket
 * in its folder, each a POST with JSON:
 *
 * | path | body | what |
 * |---|---|---|
 * | `/index` | layer reference, `file` | puts a layer's index into the cluster's store, as the indexer does |
 * | `/provide` | layer reference | makes the layer ready |
 * | `/fetch` | layer reference | fetches all of it |
 * | `/read` | layer reference | what is not there is fetched while a reader waits |
 * | `/start` | list of layer parts | makes layers ready and fetches what a start reads |
 * | `/startup-digest` | list of layer parts | digest of what a start reads |
 * | `/misbehave` | layer reference, `how` | from now on is a bad peer |
 * | `/figures` | layer reference | what the node has |
 */
import { readFile, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import { json } from 'node:stream/consumers';
import { NatsBus } from '#shared/bus/nats-bus.ts';
import { ClusterIndexes } from '#shared/indexes/cluster-indexes.ts';
import { createLogger } from '#shared/telemetry/logger.ts';
import { WorkerPool } from '#services/snapshotter/layers/worker-pool.ts';
import { misbehave, type Misbehaviour } from './misbehaviour.ts';
import { SharingNode, type LayerPart, type LayerReference, type StartupSpan } from './sharing-node.ts';

const [folder = '', name = '', natsUrl = '', address = '', registryHost = ''] = process.argv.slice(2);
const logger = createLogger(name, process.env['LOG'] ?? 'warn');
const stop = new AbortController();
process.once('SIGTERM', () => stop.abort(new Error('SIGTERM')));

await using bus = new NatsBus({ url: natsUrl, clientName: name, logger, replicas: 1, objectBytes: 64 * 1024 * 1024 });
const workers = new WorkerPool({ size: 2 });
{
  const given = Object.entries(process.env).filter(([key]) => key.startsWith('KINDLING_PEER_'));
  const env = { ...(Object.fromEntries(given) as Record<string, string>), KINDLING_PEER_LISTEN: `${address}:0` };
  const dataDir = `${folder}/${name}`;
  const indexes = new ClusterIndexes(bus);
  const common = { name, dataDir, bus, workers, env, logger };
  const options = { ...common, plainHttpHosts: [registryHost], indexes: [indexes] };
  await using node = await SharingNode.start(options, stop.signal);
  workers.warm(2);
  await node.peers.link.settled();
  let announced = 0;
  node.peers.link.onEpoch(() => announced++);
  const server = createServer((request, response) => {
    void (async () => {
      const order = (await json(request)) as LayerReference &
        readonly LayerPart[] & { readonly file: string; readonly how: Misbehaviour };
      let startup: readonly StartupSpan[] = [];
      let digest = '';
      const startMs = performance.now();
      switch (request.url) {
        case '/index':
          await indexes.publish(order.digest, await readFile(order.file), stop.signal);
          break;
        case '/provide':
          await node.provide(order, stop.signal);
          break;
        case '/read':
          await node.provide(order, stop.signal);
          digest = await node.imageDigest(order.digest, stop.signal);
          break;
        case '/fetch':
          await node.fetchAll(order, stop.signal);
          break;
        case '/misbehave':
          misbehave(node, order.digest, order.how);
          break;
        case '/start':
          startup = await node.startUp(order, stop.signal);
          break;
        default:
      }
      const completeMs = performance.now() - startMs;
      const layers =
        request.url?.startsWith('/start') === true ? order.map(({ layer }) => layer.digest) : [order.digest];
      const sum = { registry: 0, peer: 0, errors: 0 };
      for (const layer of layers) {
        const { bytesBySource, errors } = node.statistics.figures(layer);
        sum.registry += bytesBySource.registry;
        sum.peer += bytesBySource.peer;
        sum.errors += errors;
      }
      if (request.url === '/startup-digest') digest = await node.startupDigest(order, stop.signal);
      if (request.url === '/fetch') digest = await node.imageDigest(order.digest, stop.signal);
      response.end(JSON.stringify({ ...sum, startup, completeMs, digest, up: node.peers.link.up, announced }));
    })().catch((error: unknown) => response.writeHead(500).end(String(error)));
  });
  await rm(`${folder}/${name}.sock`, { force: true });
  server.listen(`${folder}/${name}.sock`);
  await new Promise<void>((resolve) => stop.signal.addEventListener('abort', () => resolve(), { once: true }));
  server.close();
  server.closeAllConnections();
}
await workers.close();
