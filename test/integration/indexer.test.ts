import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { test } from 'node:test';
import { NatsBus } from '#shared/bus/nats-bus.ts';
import { NatsProcess } from '#shared/bus/nats-process.ts';
import { fromBus, subjectOf, toBus } from '#shared/events/image-events.ts';
import { buildFromRegistry } from '#shared/indexes/build-from-registry.ts';
import { ClusterIndexes } from '#shared/indexes/cluster-indexes.ts';
import { RegistryClient } from '#shared/registry/registry-client.ts';
import type { Descriptor } from '#shared/registry/manifest.ts';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { TestNats } from '#test/harness/nats.ts';
import type { ServerProcess } from '#test/harness/server-process.ts';
import { startService } from '#test/harness/service-process.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { tinyImage } from '#test/harness/tiny-image.ts';

const IMAGES = 8;
/** What is killed, one after the other, while the queue is worked on. */
const KILLS = ['first', 'second', 'nats', 'first'] as const;

test('indexers and NATS killed under a queue of images: in the end every index is there and right, and nothing is lost', {
  skip: NatsProcess.missing(),
}, async (t) => {
  const { signal } = t;
  await using folder = await TempFolder.create('i');
  await using nats = await TestNats.start(folder.join('nats'), signal);
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  const start = async () => await startService('indexer', { NATS_URL: nats.url }, undefined, signal);
  const indexers: Record<'first' | 'second', ServerProcess> = { first: await start(), second: await start() };
  await using closing = new AsyncDisposableStack();
  closing.defer(async () => {
    await indexers.first[Symbol.asyncDispose]();
    await indexers.second[Symbol.asyncDispose]();
  });
  let logs = '';
  const bus = closing.use(new NatsBus({ url: nats.url, clientName: 'test', logger: silentLogger }));

  const layers = new Map<string, Descriptor & { readonly repository: string }>();
  const images: string[] = [];
  for (let i = 0; i < IMAGES; i++) {
    const files = [i, i + 1].map((n) => ({
      [`data/${n}`]: noise(n, 400_000),
      [`text/${n}`]: `file ${n}\n`.repeat(20_000),
    }));
    const layout = await tinyImage(folder.join(`image-${i}`), files, ['/none'], signal);
    const image = await registry.push(layout, `team/app-${i}`, 'v1', signal);
    images.push(image);
    const { manifest } = await layout.manifest();
    for (const layer of manifest.layers)
      layers.set(layer.digest, { ...layer, repository: `${registry.host}/team/app-${i}` });
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

  for (const [i, victim] of KILLS.entries()) {
    await sleep(150 + 170 * i, undefined, { signal });
    if (victim === 'nats') {
      nats.kill();
      await sleep(300, undefined, { signal });
      await nats.restart(signal);
      continue;
    }
    logs += indexers[victim].log;
    indexers[victim].kill('SIGKILL');
    await indexers[victim].exited;
    indexers[victim] = await start();
  }
  const all = () => `${logs}${indexers.first.log}${indexers.second.log}`;
  const end = performance.now() + 90_000;
  while (indexed.size < images.length) {
    if (performance.now() > end) assert.fail(`${indexed.size} of ${images.length} images are indexed\n${all()}`);
    await sleep(100, undefined, { signal });
  }
  assert.deepEqual([...indexed].sort(), images.toSorted());
  assert.deepEqual(await bus.events.deadLetters(10, signal), []);

  const client = new RegistryClient();
  closing.defer(async () => await client.close());
  const indexes = new ClusterIndexes(bus);
  for (const layer of layers.values()) {
    const { bytes } = await buildFromRegistry(client, layer.repository, layer, {}, signal);
    const stored = await indexes.find({ layer: layer.digest }, signal);
    assert.ok(stored && bytes.equals(stored), `the index of ${layer.digest}`);
  }
  // Each kill may cost the work that was being done, not that of others.
  const built = all().split('"built an index"').length - 1;
  assert.ok(built <= layers.size + KILLS.length, `${built} indexes were built for ${layers.size} layers`);
});

/** Bytes that do not compress, the same each time. */
function noise(seed: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  let state = seed + 1;
  for (let i = 0; i < length; i++) {
    state = (state * 1_103_515_245 + 12_345) % 2 ** 31;
    bytes[i] = state >> 16;
  }
  return bytes;
}
