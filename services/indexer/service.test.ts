import assert from 'node:assert/strict';
import { test } from 'node:test';
import { eventually, Inbox } from '#shared/bus/bus-conformance.ts';
import { LocalBus } from '#shared/bus/local-bus.ts';
import { sha256, type Digest } from '#shared/digest/digest.ts';
import { fromBus, toBus, type ImageIndexed } from '#shared/events/image-events.ts';
import { decodeIndexingFailure, INDEXING_FAILED } from '#shared/events/indexing-failure.ts';
import { ClusterIndexes } from '#shared/indexes/cluster-indexes.ts';
import { LayerError } from '#shared/layer/layer-index.ts';
import { MEDIA_TYPES, parseManifest } from '#shared/registry/manifest.ts';
import type { Reference } from '#shared/registry/reference.ts';
import type { RegistryClient } from '#shared/registry/registry-client.ts';
import { RegistryError } from '#shared/registry/registry-error.ts';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { Registry } from '#shared/telemetry/metrics.ts';
import type { BuildIndex } from './index-build.ts';
import { runIndexer } from './service.ts';

const signal = new AbortController().signal;
const layerOf = (name: string) => sha256(Buffer.from(name));

/** Manifests by tag or digest; what is not there is not found. */
class Manifests {
  readonly #documents = new Map<string, object>();
  asked = 0;

  image(tag: string, layers: readonly string[], more: object = {}): Digest {
    const config = { mediaType: MEDIA_TYPES.ociConfig, digest: layerOf('config'), size: 2 };
    const descriptors = layers.map((name) => ({
      mediaType: MEDIA_TYPES.ociLayerGzip,
      digest: layerOf(name),
      size: 100,
    }));
    return this.put(tag, {
      schemaVersion: 2,
      mediaType: MEDIA_TYPES.ociManifest,
      config,
      layers: descriptors,
      ...more,
    });
  }

  put(tag: string, document: object): Digest {
    const digest = sha256(Buffer.from(JSON.stringify(document)));
    this.#documents.set(tag, document);
    this.#documents.set(digest, document);
    return digest;
  }

  async blob(): Promise<Buffer> {
    return Buffer.from('{}');
  }

  async manifest(reference: Reference) {
    this.asked += 1;
    const document = this.#documents.get(reference.digest ?? reference.tag ?? '');
    if (!document) throw new RegistryError('not-found', 'no such manifest', { host: reference.host });
    const bytes = Buffer.from(JSON.stringify(document));
    const parsed = parseManifest(bytes, MEDIA_TYPES.ociManifest, 'it');
    return { bytes, parsed, descriptor: { mediaType: parsed.mediaType, digest: sha256(bytes), size: bytes.length } };
  }
}

function start(
  build: BuildIndex,
  more: { bus?: LocalBus; registries?: string[]; attempts?: number; pushIndexes?: boolean } = {},
) {
  const bus = more.bus ?? new LocalBus();
  const manifests = new Manifests();
  const stop = new AbortController();
  const indexer = (which = build) =>
    runIndexer(
      {
        registries: more.registries ?? ['*'],
        platforms: ['linux/amd64'],
        events: 4,
        builds: 2,
        attempts: more.attempts ?? 3,
        pushIndexes: more.pushIndexes ?? false,
      },
      {
        bus,
        registry: manifests as unknown as RegistryClient,
        build: which,
        check: (bytes, layer) => {
          if (!Buffer.from(bytes).equals(indexOf(layer).bytes)) throw new LayerError('digest-mismatch', 'damaged');
        },
        metrics: new Registry(),
        logger: silentLogger,
      },
      stop.signal,
    );
  const running = indexer();
  const indexed = new Inbox<ImageIndexed>();
  const options = {
    name: 'test',
    subject: 'kindling.events.image.indexed',
    concurrency: 1,
    maxAttempts: 1,
    inactiveMs: 1e6,
    ackWaitMs: 1e6,
    retryMs: 1,
    start: 'all',
  } as const;
  bus.events.consume(options, async (d) => indexed.put(fromBus('image.indexed', d.payload).data));
  const publish = (image: string, id = image) =>
    bus.events.publish(toBus({ type: 'image.pushed', id, source: 'test', data: { image } }, new Date(0)), signal);
  return {
    bus,
    manifests,
    indexed,
    indexer,
    publish,
    indexes: new ClusterIndexes(bus),
    async [Symbol.asyncDispose]() {
      stop.abort();
      await running;
      await bus[Symbol.asyncDispose]();
    },
  };
}

const indexOf = (layer: string) =>
  ({ bytes: Buffer.from(`index of ${layer}`), index: { format: 'gzip', spans: [] } }) as const;

test('each layer of a pushed image gets one index, and then the image is told to be indexed', async () => {
  const built: string[] = [];
  await using rig = start(async (_repository, layer) => {
    built.push(layer.digest);
    return indexOf(layer.digest);
  });
  const digest = rig.manifests.image('v1', ['base', 'app', 'base']);
  await rig.publish('r.example/team/app:v1');
  const event = await rig.indexed.take();
  assert.equal(event.image, 'r.example/team/app:v1');
  assert.equal(event.digest, digest);
  assert.equal(event.cause, 'push');
  assert.deepEqual(
    event.layers.map(({ layer, state }) => [layer, state]),
    [
      [layerOf('base'), 'indexed'],
      [layerOf('app'), 'indexed'],
    ],
  );
  assert.deepEqual(built.sort(), [layerOf('base'), layerOf('app')].sort());
  assert.deepEqual(
    Buffer.from((await rig.indexes.find({ layer: layerOf('app') }, signal)) ?? []),
    indexOf(layerOf('app')).bytes,
  );
});

test('an image that shares layers builds only what is new, also at the same moment in two indexers', async () => {
  const gate = Promise.withResolvers<void>();
  const built = new Inbox<string>();
  await using rig = start(async (_repository, layer) => {
    built.put(layer.digest);
    await gate.promise;
    return indexOf(layer.digest);
  });
  const second = rig.indexer();
  rig.manifests.image('v1', ['base']);
  rig.manifests.image('v2', ['base', 'two']);
  await rig.publish('r.example/app:v1');
  await rig.publish('r.example/app:v2');
  assert.deepEqual(new Set([await built.take(), await built.take()]), new Set([layerOf('base'), layerOf('two')]));
  gate.resolve();
  await rig.indexed.take();
  await rig.indexed.take();
  assert.equal(built.size, 0);
  await rig[Symbol.asyncDispose]();
  await second;
});

test('an event that comes again builds nothing and tells nothing new', async () => {
  let built = 0;
  await using rig = start(async (_repository, layer) => {
    built += 1;
    return indexOf(layer.digest);
  });
  rig.manifests.image('v1', ['base']);
  await rig.publish('r.example/app:v1', 'one');
  await rig.indexed.take();
  await rig.publish('r.example/app:v1', 'another');
  await rig.indexed.take();
  assert.equal(built, 1);
});

test('a layer that can have no index is told as not lazy with its reason', async () => {
  await using rig = start(async () => {
    throw new LayerError('unsupported', 'plain zstd has no seek points');
  });
  rig.manifests.image('v1', ['base']);
  await rig.publish('r.example/app:v1');
  const event = await rig.indexed.take();
  assert.deepEqual(event.layers, [
    { layer: layerOf('base'), sizeBytes: 100, state: 'not-lazy', reason: 'unsupported: plain zstd has no seek points' },
  ]);
});

test('a wrong blob never gets an index: the event ends among the dead letters, the queue goes on', async () => {
  const attempts: string[] = [];
  await using rig = start(
    async (_repository, layer) => {
      attempts.push(layer.digest);
      if (layer.digest === layerOf('bad'))
        throw new LayerError('digest-mismatch', 'the blob is not what it claims to be');
      return indexOf(layer.digest);
    },
    { attempts: 1 },
  );
  rig.manifests.image('bad', ['bad', 'good']);
  rig.manifests.image('v1', ['good']);
  await rig.publish('r.example/app:bad');
  const letter = await eventually(async () => (await rig.bus.events.deadLetters(9))[0]);
  assert.match(letter.reason, /not what it claims/);
  assert.equal(await rig.indexes.has(layerOf('bad'), signal), false);
  assert.equal(await rig.indexes.has(layerOf('good'), signal), true);
  await rig.publish('r.example/app:v1');
  assert.equal((await rig.indexed.take()).image, 'r.example/app:v1');
  assert.equal(attempts.length, 2);
});

test('whoever waits is told why an image cannot be indexed, and whether that may pass', async () => {
  let error: Error = new RegistryError('unreachable', 'it is down', { host: 'r.example' });
  await using rig = start(
    async () => {
      throw error;
    },
    { registries: ['r.example'], attempts: 1 },
  );
  const told = new Inbox<object>();
  await using _told = rig.bus.messages.subscribe(INDEXING_FAILED, undefined, (payload) =>
    told.put(decodeIndexingFailure(payload)),
  );
  const about = (id: string) => ({ source: 'test', id });
  await rig.publish('r.example/app:none', '1');
  assert.deepEqual(await told.take(), {
    ...about('1'),
    code: 'not-found',
    reason: 'no such manifest',
    passing: false,
  });
  rig.manifests.image('v1', ['base']);
  await rig.publish('r.example/app:v1', '2');
  assert.deepEqual(await told.take(), { ...about('2'), code: 'unreachable', reason: 'it is down', passing: true });
  error = new RegistryError('too-large', 'it is huge', { host: 'r.example' });
  await rig.publish('r.example/app:v1', '3');
  assert.deepEqual(await told.take(), { ...about('3'), code: 'too-large', reason: 'it is huge', passing: false });
  await rig.publish('evil.example/app:v1', '4');
  assert.deepEqual(await told.take(), {
    ...about('4'),
    code: 'rejected',
    reason: 'Cannot index evil.example/app:v1: its repository is not among KINDLING_INDEXER_REGISTRIES',
    passing: false,
  });
  rig.manifests.image('artifact', ['x'], { artifactType: 'application/x' });
  await rig.publish('r.example/app:artifact', '5');
  assert.partialDeepStrictEqual(await told.take(), { ...about('5'), code: 'wrong-platform', passing: false });
});

test('what is refused once and for all costs no second attempt', async () => {
  await using rig = start(async (_repository, layer) => indexOf(layer.digest), { registries: ['r.example'] });
  await rig.publish('evil.example/app:v1');
  await rig.bus.events.publish(
    { subject: 'kindling.events.image.pushed', id: 'x', payload: Buffer.from('no event') },
    signal,
  );
  const letters = await eventually(async () => {
    const all = await rig.bus.events.deadLetters(9);
    return all.length === 2 ? all : undefined;
  });
  assert.deepEqual(
    letters.map((letter) => letter.attempts),
    [1, 1],
  );
  assert.equal(rig.manifests.asked, 0);
});

test('artifacts that are no container images are passed over', async () => {
  await using rig = start(async (_repository, layer) => indexOf(layer.digest));
  rig.manifests.image('signature', ['x'], {
    artifactType: 'application/x',
    subject: { mediaType: MEDIA_TYPES.ociManifest, digest: layerOf('y'), size: 1 },
  });
  rig.manifests.image('v1', ['base']);
  await rig.publish('r.example/app:signature');
  await rig.publish('r.example/app:v1');
  assert.equal((await rig.indexed.take()).image, 'r.example/app:v1');
  assert.equal(rig.indexed.size, 0);
  assert.equal((await rig.bus.events.deadLetters(9)).length, 0);
});

test('of an image with several platforms those that are wanted are indexed', async () => {
  await using rig = start(async (_repository, layer) => indexOf(layer.digest));
  const manifests = ['amd64', 'arm64'].map((architecture) => ({
    mediaType: MEDIA_TYPES.ociManifest,
    digest: rig.manifests.image(architecture, [`for-${architecture}`]),
    size: 1,
    platform: { os: 'linux', architecture },
  }));
  const digest = rig.manifests.put('v1', { schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests });
  await rig.publish('r.example/app:v1');
  const event = await rig.indexed.take();
  assert.equal(event.digest, digest);
  assert.deepEqual(
    event.layers.map(({ layer }) => layer),
    [layerOf('for-amd64')],
  );
});

test('an index in the cluster that was damaged is built anew', async () => {
  await using rig = start(async (_repository, layer) => indexOf(layer.digest));
  rig.manifests.image('v1', ['base']);
  await rig.indexes.publish(layerOf('base'), Buffer.from('tampered'), signal);
  await rig.publish('r.example/app:v1');
  await rig.indexed.take();
  const stored = await rig.indexes.find({ layer: layerOf('base') }, signal);
  assert.deepEqual(Buffer.from(stored ?? []), indexOf(layerOf('base')).bytes);
});
