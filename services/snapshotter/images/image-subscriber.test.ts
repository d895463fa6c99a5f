import assert from 'node:assert/strict';
import { test } from 'node:test';
import { eventually, Inbox } from '#shared/bus/bus-conformance.ts';
import { LocalBus } from '#shared/bus/local-bus.ts';
import { sha256 } from '#shared/digest/digest.ts';
import { toBus, type ImageIndexed } from '#shared/events/image-events.ts';
import { RegistryError } from '#shared/registry/registry-error.ts';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { Registry } from '#shared/telemetry/metrics.ts';
import { subscribeToImages } from './image-subscriber.ts';

const signal = new AbortController().signal;
const digest = sha256(Buffer.from('x'));

async function announce(bus: LocalBus, image: string, cause: ImageIndexed['cause'] = 'push'): Promise<void> {
  const data = { image, digest, cause, layers: [] };
  await bus.events.publish(toBus({ type: 'image.indexed', id: image, source: 'test', data }, new Date(0)), signal);
}

function subscribe(bus: LocalBus, pull: (image: string) => Promise<void>, nodeName = 'node.example') {
  const metrics = new Registry();
  return subscribeToImages({
    bus,
    nodeName,
    repositories: ['r.example'],
    pull: async (image) => {
      await pull(image);
      return { totalMs: 1 };
    },
    metrics,
    logger: silentLogger,
  });
}

test('a node pulls what was announced, also while it was down, and each image once', async () => {
  await using bus = new LocalBus();
  const pulled = new Inbox<string>();
  await announce(bus, 'r.example/before:1');
  {
    await using _node = subscribe(bus, async (image) => pulled.put(image));
    assert.equal(await pulled.take(), 'r.example/before:1');
  }
  await announce(bus, 'r.example/while-down:1');
  await using _node = subscribe(bus, async (image) => pulled.put(image));
  assert.equal(await pulled.take(), 'r.example/while-down:1');
  await using _other = subscribe(bus, async (image) => pulled.put(`other ${image}`), 'node-example');
  assert.equal(await pulled.take(), 'other r.example/before:1');
});

test('images of other registries, and parts of images that were pushed, are passed over', async () => {
  await using bus = new LocalBus();
  const pulled = new Inbox<string>();
  await announce(bus, 'evil.example/x:1');
  await announce(bus, `r.example/part@${digest}`);
  await announce(bus, `r.example/wanted@${digest}`, 'deploy');
  await using _node = subscribe(bus, async (image) => pulled.put(image));
  assert.equal(await pulled.take(), `r.example/wanted@${digest}`);
});

test('an image that was deleted since is given up at once', async () => {
  await using bus = new LocalBus();
  let attempts = 0;
  await announce(bus, 'r.example/gone:1');
  await using _node = subscribe(bus, async () => {
    attempts += 1;
    throw new RegistryError('not-found', 'no such image', { host: 'r.example' });
  });
  await eventually(async () => (await bus.events.deadLetters(1))[0]);
  assert.equal(attempts, 1);
});
