import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Inbox } from '#shared/bus/bus-conformance.ts';
import { BusError } from '#shared/bus/bus.ts';
import { LocalBus } from '#shared/bus/local-bus.ts';
import { sha256 } from '#shared/digest/digest.ts';
import { fromBus } from '#shared/events/image-events.ts';
import { AllowedRepositories } from '#shared/registry/allowed-repositories.ts';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { Registry } from '#shared/telemetry/metrics.ts';
import { GatewayServer } from './gateway-server.ts';

const TOKEN = 'a-token-of-some-length';
const digest = sha256(Buffer.from('x'));
const auth = { authorization: `Bearer ${TOKEN}` };
const CLOUD = { ...auth, 'content-type': 'application/cloudevents+json' };
const cloudEvent = (type: string, data: unknown, id = '1') =>
  JSON.stringify({ specversion: '1.0', id, source: 's', type, data });

async function start(bus = new LocalBus()) {
  const metrics = new Registry();
  const allowed = new AllowedRepositories(['r.example:5000']);
  const server = await GatewayServer.listen(
    { bus, allowed, tokens: [TOKEN], metrics, logger: silentLogger },
    { host: '127.0.0.1', port: 0 },
  );
  const post = async (path: string, headers: Record<string, string>, body: string) => {
    const response = await fetch(`http://127.0.0.1:${server.port}${path}`, { method: 'POST', headers, body });
    return { status: response.status, body: (await response.json()) as Record<string, unknown> };
  };
  return {
    bus,
    server,
    post,
    async [Symbol.asyncDispose]() {
      await server[Symbol.asyncDispose]();
      await bus[Symbol.asyncDispose]();
    },
  };
}

const consumer = (subject: string) =>
  ({
    name: 'test',
    subject,
    concurrency: 1,
    maxAttempts: 1,
    inactiveMs: 1e6,
    ackWaitMs: 1e6,
    retryMs: 1,
    start: 'all',
  }) as const;

test('a push that a registry tells of is on the bus once, whatever the registry repeats', async () => {
  await using gateway = await start();
  const target = { mediaType: 'application/vnd.oci.image.manifest.v1+json', digest, repository: 'team/app', tag: 'v1' };
  const event = { id: 'e1', action: 'push', target, request: { host: 'r.example:5000' } };
  const elsewhere = { ...event, id: 'e2', request: { host: 'other.example' } };
  const odd = { ...event, id: 'e3', target: { ...target, repository: '../x' } };
  const body = JSON.stringify({ events: [event, elsewhere, odd] });
  const first = await gateway.post('/v1/registry-events', auth, body);
  assert.deepEqual(first, { status: 202, body: { accepted: 1, duplicates: 0, ignored: 2 } });
  const again = await gateway.post('/v1/registry-events', auth, body);
  assert.deepEqual(again.body, { accepted: 1, duplicates: 1, ignored: 2 });
  const seen = new Inbox<unknown>();
  await using _consumer = gateway.bus.events.consume(consumer('kindling.events.image.pushed'), async (d) =>
    seen.put(fromBus('image.pushed', d.payload)),
  );
  assert.deepEqual(await seen.take(), {
    type: 'image.pushed',
    id: 'e1',
    source: 'registry://r.example:5000',
    data: { image: 'r.example:5000/team/app:v1', digest },
  });
});

test('a deployment is taken as a CloudEvent, with the name of its image made whole', async () => {
  await using gateway = await start();
  const taken = await gateway.post(
    '/v1/events',
    CLOUD,
    cloudEvent('function.deployed', { function: 'f', image: 'r.example:5000/app', more: 1 }),
  );
  assert.equal(taken.status, 202);
  const seen = new Inbox<unknown>();
  await using _consumer = gateway.bus.events.consume(consumer('kindling.events.function.deployed'), async (d) =>
    seen.put(fromBus('function.deployed', d.payload).data),
  );
  assert.deepEqual(await seen.take(), { function: 'f', image: 'r.example:5000/app:latest' });
});

test('requests that must not be taken are refused with the reason', async () => {
  await using gateway = await start();
  const deployed = cloudEvent('function.deployed', { function: 'f', image: 'r.example:5000/app' });
  const statuses: [number, Promise<{ status: number; body: Record<string, unknown> }>][] = [
    [401, gateway.post('/v1/events', { 'content-type': 'application/cloudevents+json' }, deployed)],
    [401, gateway.post('/v1/events', { ...CLOUD, authorization: 'Bearer wrong-token-of-length' }, deployed)],
    [
      403,
      gateway.post('/v1/events', CLOUD, cloudEvent('function.deployed', { function: 'f', image: 'evil.example/app' })),
    ],
    [415, gateway.post('/v1/events', CLOUD, cloudEvent('image.indexed', {}))],
    [400, gateway.post('/v1/events', CLOUD, cloudEvent('image.pushed', { image: 'UPPER CASE' }))],
    [400, gateway.post('/v1/events', CLOUD, '{')],
    [413, gateway.post('/v1/events', CLOUD, ' '.repeat(2 * 1024 * 1024))],
    [400, gateway.post('/v1/registry-events', auth, '[]')],
    [404, gateway.post('/v1/other', auth, '{}')],
  ];
  for (const [status, answer] of statuses) {
    const got = await answer;
    assert.equal(got.status, status, JSON.stringify(got.body));
    assert.equal(typeof got.body['message'], 'string');
  }
});

test('an event that the bus cannot keep is not acknowledged', async () => {
  await using gateway = await start();
  gateway.bus.events.publish = async () => {
    throw new BusError('unavailable', 'no');
  };
  const answer = await gateway.post(
    '/v1/events',
    CLOUD,
    cloudEvent('function.deployed', { function: 'f', image: 'r.example:5000/app' }),
  );
  assert.equal(answer.status, 503);
});
