import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { test } from 'node:test';
import { NatsBus } from '#shared/bus/nats-bus.ts';
import { NatsProcess } from '#shared/bus/nats-process.ts';
import { fromBus, subjectOf, toBus } from '#shared/events/image-events.ts';
import { buildFromRegistry } from '#shared/indexes/build-from-registry.ts';
import { ClusterIndexes } from '#shared/indexes/cluster-indexes.ts';
import { decodeLayerIndex } from '#shared/layer/index-codec.ts';
import { RegistryClient } from '#shared/registry/registry-client.ts';
import type { Descriptor } from '#shared/registry/manifest.ts';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { LinkProcess } from '#test/harness/link-process.ts';
import { TestNats } from '#test/harness/nats.ts';
import type { ServerProcess } from '#test/harness/server-process.ts';
import { startService } from '#test/harness/service-process.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { tinyImage } from '#test/harness/tiny-image.ts';
import { until } from '#test/harness/until.ts';

const REPOSITORY = 'team/app';
const IMAGES = 10;
/** Bytes of a layer that cannot be compressed: what the link is busy with. */
const LAYER_BYTES = 200_000;
/** So that there is work whenever something is killed. */
const LINK_BYTES_PER_SECOND = 500_000;
/** What is killed, one after the other, while the queue is worked on. */
const KILLS = ['first', 'second', 'first', 'second', 'nats', 'second', 'first', 'first', 'second'] as const;
const MOST_PAUSE_MS = 400;

test('indexers and NATS killed at random under a queue of images: in the end every index is there and right, nothing is lost, and no layer was read for nothing', {
  skip: NatsProcess.missing(),
}, async (t) => {
  const { signal } = t;
  await using folder = await TempFolder.create('i');
  await using nats = await TestNats.start(folder.join('nats'), signal);
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  await using link = await LinkProcess.start(registry.port, { bytesPerSecond: LINK_BYTES_PER_SECOND }, signal);
  const settings = { NATS_URL: nats.url, KINDLING_INDEXER_BUILDS: '1', KINDLING_INDEXER_ATTEMPTS: '30' };
  const start = async () => await startService('indexer', settings, undefined, signal);
  const indexers: Record<'first' | 'second', ServerProcess> = { first: await start(), second: await start() };
  await using closing = new AsyncDisposableStack();
  closing.defer(async () => {
    await indexers.first[Symbol.asyncDispose]();
    await indexers.second[Symbol.asyncDispose]();
  });
  let logs = '';
  const bus = closing.use(new NatsBus({ url: nats.url, clientName: 'test', logger: silentLogger }));

  const layers = new Map<string, Descriptor>();
  const images: string[] = [];
  for (let i = 0; i < IMAGES; i++) {
    const files = [i, i + 1].map((n) => ({
      [`data/${n}`]: noise(n, LAYER_BYTES),
      [`text/${n}`]: `file ${n}\n`.repeat(20_000),
    }));
    const layout = await tinyImage(folder.join(`image-${i}`), files, ['/none'], signal);
    await registry.push(layout, REPOSITORY, `v${i}`, signal);
    images.push(`${link.host}/${REPOSITORY}:v${i}`);
    for (const layer of (await layout.manifest()).manifest.layers) layers.set(layer.digest, layer);
  }
  const indexed = new Set<string>();
  const options = {
    name: 'test',
    subject: subjectOf('image.indexed'),
    concurrency: 1,
    maxAttempts: 5,
    inactiveMs: 600_000,
    ackWaitMs: 10_000,
    retryMs: 100,
    start: 'all',
  } as const;
  closing.use(
    bus.events.consume(options, async (d) => void indexed.add(fromBus('image.indexed', d.payload).data.image)),
  );
  for (const image of images) {
    await bus.events.publish(
      toBus({ type: 'image.pushed', id: image, source: 'test', data: { image } }, new Date()),
      signal,
    );
  }

  let kills = 0;
  for (const victim of KILLS) {
    if (victim === 'nats') {
      nats.kill();
      await sleep(300, undefined, { signal });
      await nats.restart(signal);
      continue;
    }
    const server = indexers[victim];
    await until(() => server.log.includes('taking events') || indexed.size === IMAGES, signal);
    await sleep(Math.random() * MOST_PAUSE_MS, undefined, { signal });
    logs += server.log;
    kills += 1;
    server.kill('SIGKILL');
    await server.exited;
    indexers[victim] = await start();
  }
  const all = () => `${logs}${indexers.first.log}${indexers.second.log}`;
  await until(() => indexed.size === IMAGES, signal).catch((error: unknown) => {
    assert.fail(`${String(error)}: ${indexed.size} of ${IMAGES} images are indexed\n${all()}`);
  });
  assert.deepEqual([...indexed].sort(), images.toSorted());
  assert.deepEqual(await bus.events.deadLetters(10, signal), []);

  // At a kill the layer that was being read is lost; after that of NATS, which forgets who works on what, both may read the same.
  const sizes = [...layers.values()].map(({ size }) => size);
  const lost = (kills + 2) * Math.max(...sizes);
  const manifests = 100_000 * (kills + 1);
  const down = await link.bytesDown();
  const most = sizes.reduce((sum, size) => sum + size, lost + manifests);
  assert.ok(down <= most, `${down} bytes came from the registry, at most ${most} are explained\n${all()}`);
  const built = [...all().matchAll(/"layer":"(sha256:[0-9a-f]+)"[^\n]*"built an index"/g)].map(([, layer]) => layer);
  assert.ok(built.length - new Set(built).size <= 2, `finished twice\n${all()}`);

  const client = new RegistryClient();
  closing.defer(async () => await client.close());
  const indexes = new ClusterIndexes(bus);
  for (const layer of layers.values()) {
    const { bytes } = await buildFromRegistry(client, `${registry.host}/${REPOSITORY}`, layer, {}, signal);
    const stored = await indexes.find({ layer: layer.digest }, signal);
    assert.ok(stored && bytes.equals(stored), `the index of ${layer.digest}`);
    decodeLayerIndex(stored, layer.digest);
  }
});

/** Bytes that do not compress, the same each time. */
function noise(seed: number, length: number): Buffer {
  return createHash('shake256', { outputLength: length }).update(String(seed)).digest();
}
