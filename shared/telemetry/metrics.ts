import type { Server } from 'node:http';
import type { Address } from '#shared/config/settings.ts';
import { collectProcessMetrics, Registry } from './prometheus.ts';

export { Counter, Gauge, Histogram, Registry } from './prometheus.ts';

/** A registry of metrics with the process's own; every service has one, none has labels of unbounded value. */
export function createMetrics(): Registry {
  const registry = new Registry();
  collectProcessMetrics(registry);
  return registry;
}

/** Serves `/metrics` and `/healthz` on `host:port`; port 0 picks a free one. */
export async function serveMetrics(registry: Registry, address: Address, healthy: () => boolean): Promise<Server> {
  // Loaded only where it is used.
  const { createServer } = await import('#shared/http/node-http.ts');
  const server = createServer((request, response) => {
    if (request.url === '/healthz') {
      response.writeHead(healthy() ? 200 : 503).end(healthy() ? 'ok\n' : 'not ready\n');
      return;
    }
    if (request.url !== '/metrics') {
      response.writeHead(404).end();
      return;
    }
    registry.metrics().then(
      (text) => response.writeHead(200, { 'content-type': registry.contentType }).end(text),
      () => response.writeHead(500).end(),
    );
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(address.port, address.host, resolve);
  });
  server.unref();
  return server;
}
