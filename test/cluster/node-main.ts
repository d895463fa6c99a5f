/**
 * A sharing node as a process of its own: `node-main.ts FOLDER NAME NATS-URL ADDRESS REGISTRY-HOST`. Takes orders over a unix socket
 * in its folder: `POST /fetch` with a layer reference, or `/read`: what is not there is fetched while a reader waits, as in a start.
 */
import { rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import { json } from 'node:stream/consumers';
import { NatsBus } from '#shared/bus/nats-bus.ts';
import { createLogger } from '#shared/telemetry/logger.ts';
import { WorkerPool } from '#services/snapshotter/layers/worker-pool.ts';
import { SharingNode, type LayerReference } from './sharing-node.ts';

const [folder = '', name = '', natsUrl = '', address = '', registryHost = ''] = process.argv.slice(2);
const logger = createLogger(name, process.env['LOG'] ?? 'warn');
const stop = new AbortController();
process.once('SIGTERM', () => stop.abort(new Error('SIGTERM')));

await using bus = new NatsBus({ url: natsUrl, clientName: name, logger, replicas: 1, objectBytes: 64 * 1024 * 1024 });
const workers = new WorkerPool({ size: 2 });
{
  const env = { KINDLING_PEER_LISTEN: `${address}:0` };
  const dataDir = `${folder}/${name}`;
  const options = { name, dataDir, bus, workers, env, logger, plainHttpHosts: [registryHost] };
  await using node = await SharingNode.start(options, stop.signal);
  workers.warm(2);
  await node.peers.link.settled();
  let announced = 0;
  node.peers.link.onEpoch(() => announced++);
  const server = createServer((request, response) => {
    void (async () => {
      const layer = (await json(request)) as LayerReference;
      const startMs = performance.now();
      if (request.url === '/provide' || request.url === '/read') await node.provide(layer, stop.signal);
      else if (request.url === '/fetch') await node.fetchAll(layer, stop.signal);
      const completeMs = performance.now() - startMs;
      const { bytesBySource, errors } = node.statistics.figures(layer.digest);
      const digest =
        request.url !== '/fetch' && request.url !== '/read' ? '' : await node.imageDigest(layer.digest, stop.signal);
      response.end(JSON.stringify({ ...bytesBySource, errors, completeMs, digest, up: node.peers.link.up, announced }));
    })().catch((error: unknown) => response.writeHead(500).end(String(error)));
  });
  await rm(`${folder}/${name}.sock`, { force: true });
  server.listen(`${folder}/${name}.sock`);
  await new Promise<void>((resolve) => stop.signal.addEventListener('abort', () => resolve(), { once: true }));
  server.close();
  server.closeAllConnections();
}
await workers.close();
