import assert from 'node:assert/strict';
import { mkdtemp, open, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { hexOf, sha256, type Digest } from '#shared/digest/digest.ts';
import { fakeMember, fakeTar, indexOfTar } from '#shared/layer/fake-layer.ts';
import { encodeLayerIndex } from '#shared/layer/index-codec.ts';
import { buildLayerImage } from '#shared/layer/layer-image.ts';
import { parseSpanMap } from '#shared/layer/span-map-file.ts';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { Registry } from '#shared/telemetry/metrics.ts';
import type { Mounter } from '../mounts/mounter.ts';
import type { LayerRequest } from '../snapshots/layer-provider.ts';
import { BlobStreamer } from './blob-streamer.ts';
import { LayerMounts } from './layer-mounts.ts';
import { LayerStatistics } from './layer-statistics.ts';
import { LayerStore, type LayerStoreOptions } from './layer-store.ts';
import { RegistrySource } from './registry-source.ts';
import { WorkerPool } from './worker-pool.ts';

const never = new AbortController().signal;
const root = await mkdtemp(join(tmpdir(), 'kindling-store-'));
const workers = new WorkerPool({ size: 2 });
after(async () => {
  await workers.close();
  await rm(root, { recursive: true, force: true });
});

/** A layer of `files` files of 10,000 bytes, in spans of some 20 KiB. */
class FakeBlob {
  readonly bytes: Buffer;
  readonly layer: Digest;
  readonly index: Uint8Array;
  readonly image;
  reads: [start: number, end: number][] = [];
  lying = false;

  constructor(name: string, files: number) {
    const members = Array.from({ length: files }, (_, at) =>
      fakeMember(`${name}-${at}`, 'file', Buffer.alloc(10_000, `${name} ${at} `)),
    );
    this.bytes = fakeTar(members);
    const index = indexOfTar(this.bytes, 20_480);
    this.layer = index.layer;
    this.index = encodeLayerIndex(index);
    this.image = buildLayerImage(index);
  }

  request(imageReference = 'r.example/app:1'): LayerRequest {
    return {
      imageReference,
      layer: this.layer,
      sizeBytes: this.bytes.length,
      mediaType: 'application/vnd.oci.image.layer.v1.tar',
      annotations: {},
      manifest: undefined,
    };
  }

  /** What a reader must see: files of the layer at their places, and the bytes of them. */
  *files(): Generator<{ readonly offset: number; readonly bytes: Buffer }> {
    const map = parseSpanMap(this.image.map);
    for (let span = 0; span < map.spanCount; span++) {
      const start = map.blobStart(span);
      for (const { decodedOffset, imageOffset, length } of map.extents(span)) {
        yield {
          offset: imageOffset,
          bytes: this.bytes.subarray(start + decodedOffset, start + decodedOffset + length),
        };
      }
    }
  }
}

class FakeMounter implements Mounter {
  readonly mounted: string[][] = [];
  mountErofs(source: string, target: string): Promise<{ readonly via: 'file' }> {
    this.mounted.push([source, target]);
    return Promise.resolve({ via: 'file' });
  }
  mount(): Promise<void> {
    return Promise.resolve();
  }
  unmount(target: string): Promise<void> {
    const at = this.mounted.findLastIndex((mount) => mount[1] === target);
    if (at >= 0) this.mounted.splice(at, 1);
    return Promise.resolve();
  }
  mountsWithin(): Promise<never[]> {
    return Promise.resolve([]);
  }
}

let nodes = 0;

function setup(blobs: readonly FakeBlob[], options: Partial<LayerStoreOptions> & { folder?: string } = {}) {
  const dataDir = options.folder ?? join(root, `node-${nodes++}`);
  const mounter = new FakeMounter();
  const find = (layer: Digest) => {
    const blob = blobs.find((candidate) => candidate.layer === layer);
    assert.ok(blob);
    return blob;
  };
  const range = (layer: Digest, start: number, end: number) => {
    const blob = find(layer);
    blob.reads.push([start, end]);
    const bytes = Buffer.from(blob.bytes.subarray(start, end));
    if (blob.lying) bytes.fill(0x55);
    return bytes;
  };
  const statistics = new LayerStatistics({ metrics: new Registry(), logger: silentLogger });
  const store = new LayerStore({
    dataDir,
    fuseDir: '/fuse',
    mounts: new LayerMounts(join(dataDir, 'm'), mounter),
    workers,
    registry: {
      tail: () => Promise.reject(new Error('not asked for')),
      platformManifest: () => Promise.reject(new Error('not asked for')),
      blob: () => Promise.reject(new Error('not asked for')),
    },
    indexes: [{ find: ({ layer }) => Promise.resolve(find(layer).index) }],
    streamed: new BlobStreamer({
      registry: {
        async *blobStream(_repository, { digest }) {
          for (let at = 0; at < find(digest).bytes.length; at += 70_000) {
            yield await Promise.resolve(range(digest, at, at + 70_000));
          }
        },
      },
    }),
    sources: [
      new RegistrySource({
        async *blobRange(_repository, layer, start, end) {
          yield await Promise.resolve(range(layer, start, end));
        },
      }),
    ],
    statistics,
    logger: silentLogger,
    limits: { backOffMs: 1, maxBackOffMs: 1, quietMs: 0 },
    quotaBytes: 0,
    background: false,
    ...options,
  });
  return { store, mounter, dataDir, statistics };
}

async function readWhole(store: LayerStore, blob: FakeBlob): Promise<void> {
  const file = store.byName(`${hexOf(blob.layer)}.img`);
  assert.ok(file);
  assert.equal(file.sizeBytes, blob.image.imageSize);
  const metadata = await store.read(file, 0, blob.image.metadata.length, never);
  assert.deepEqual(Buffer.from(metadata), blob.image.metadata);
  for (const { offset, bytes } of blob.files()) {
    assert.deepEqual(Buffer.from(await store.read(file, offset, bytes.length, never)), bytes);
  }
}

async function powerLoss(dataDir: string): Promise<void> {
  await writeFile(join(dataDir, 'boot.json'), JSON.stringify({ bootId: 'another boot', clean: false }));
}

test('the digest of a tar is learned from an index that lays the layer out as it is here, and kept', async () => {
  const blob = new FakeBlob('tar', 6);
  const index = { ...indexOfTar(blob.bytes, 20_480), diffId: undefined };
  let found = encodeLayerIndex(index);
  const indexes = [{ find: () => Promise.resolve(found) }];
  const first = setup([blob], { indexes });
  await first.store.start(never);
  await first.store.provide(blob.request(), never);
  const learned = async (): Promise<Digest | undefined> => {
    await first.store.learnTar(blob.request(), never);
    return first.store.tarOf(blob.layer);
  };
  assert.equal(await learned(), undefined);
  const diffId = sha256(Buffer.from('its tar'));
  found = encodeLayerIndex({ ...indexOfTar(blob.bytes, 10_240), diffId });
  assert.equal(await learned(), undefined, 'that is of a layer with other spans');
  found = encodeLayerIndex({ ...index, diffId });
  assert.equal(await learned(), diffId);
  await first.store.close();
  const second = setup([blob], { folder: first.dataDir });
  await second.store.start(never);
  assert.equal(second.store.tarOf(blob.layer), diffId);
  await second.store.close();
});

test('a layer is mounted at once, fetched as it is read, and found again by the next agent', async () => {
  const blob = new FakeBlob('a', 12);
  const first = setup([blob]);
  await first.store.start(never);
  const [provided] = await Promise.all([
    first.store.provide(blob.request(), never),
    first.store.provide(blob.request('mirror.example/app:2'), never),
  ]);
  assert.deepEqual(first.mounter.mounted, [[`/fuse/${hexOf(blob.layer)}.img`, provided.path]]);
  assert.equal(blob.reads.length, 0);
  const file = first.store.byName(`${hexOf(blob.layer)}.img`);
  const [some] = blob.files();
  assert.ok(file && some);
  await first.store.read(file, some.offset, some.bytes.length, never);
  assert.equal(blob.reads.length, 1);
  await first.store.close();

  const second = setup([blob], { folder: first.dataDir });
  await second.store.start(never);
  const same = second.store.byInode(file.inode);
  assert.equal(same?.name, file.name);
  assert.deepEqual(
    second.store.layers.get(blob.layer)?.origins.map(({ repository }) => repository),
    ['mirror.example/app', 'r.example/app'],
  );
  assert.ok(same);
  await second.store.read(same, some.offset, some.bytes.length, never);
  assert.equal(blob.reads.length, 1);
  await readWhole(second.store, blob);
  await second.store.close();
});

test('when its last span is there a mounted layer is mounted from the disk, and later reads need no source', async () => {
  const blob = new FakeBlob('b', 8);
  const { store, mounter, dataDir } = setup([blob], { background: true });
  await store.start(never);
  const { path } = await store.provide(blob.request(), never);
  while (mounter.mounted.length < 2) await turn();
  assert.deepEqual(mounter.mounted[1], [join(dataDir, 'layers', hexOf(blob.layer), 'image'), path]);
  assert.equal(store.layers.get(blob.layer)?.complete, true);
  blob.lying = true;
  await readWhole(store, blob);
  assert.equal(await store.mountOf(blob.layer, never), path);
  assert.equal(mounter.mounted.length, 2);
  await store.release(blob.layer, never);
  assert.deepEqual(mounter.mounted, []);
  await store.close();
});

test('wrong bytes are never readable, and right ones are once the source tells the truth', async () => {
  const blob = new FakeBlob('c', 6);
  const { store, statistics } = setup([blob]);
  await store.start(never);
  await store.provide(blob.request(), never);
  blob.lying = true;
  const file = store.byName(`${hexOf(blob.layer)}.img`);
  const [some] = blob.files();
  assert.ok(file && some);
  await assert.rejects(store.read(file, some.offset, 100, never), { code: 'mismatch' });
  assert.ok(statistics.figures(blob.layer).errors > 0);
  blob.lying = false;
  await readWhole(store, blob);
  await store.close();
});

test('after an unclean boot what is on disk is verified before it is served, and what was lost is fetched', async () => {
  const blob = new FakeBlob('d', 12);
  const before = setup([blob]);
  await before.store.start(never);
  await before.store.provide(blob.request(), never);
  await readWhole(before.store, blob);
  await before.store.close();
  await powerLoss(before.dataDir);
  const all = [...blob.files()];
  const lost = all[4];
  assert.ok(lost);
  {
    await using image = await open(join(before.dataDir, 'layers', hexOf(blob.layer), 'image'), 'r+');
    await image.write(Buffer.alloc(lost.bytes.length), 0, lost.bytes.length, lost.offset);
  }
  blob.reads = [];
  const later = setup([blob], { folder: before.dataDir });
  await later.store.start(never);
  assert.equal(later.store.layers.get(blob.layer)?.complete, false);
  // Killed before anything was verified: the next one must not believe it either.
  const last = setup([blob], { folder: before.dataDir });
  await last.store.start(never);
  await readWhole(last.store, blob);
  assert.equal(blob.reads.length, 1);
  await last.store.close();
  await later.store.close();
});

test('a layer whose own files were damaged is made anew, or left out; the others go on', async () => {
  const [whole, mapless, recordless] = [new FakeBlob('e', 6), new FakeBlob('f', 6), new FakeBlob('g', 6)];
  const blobs = [whole, mapless, recordless];
  const before = setup(blobs);
  await before.store.start(never);
  for (const blob of blobs) await before.store.provide(blob.request(), never);
  await before.store.close();
  await powerLoss(before.dataDir);
  const folder = (blob: FakeBlob) => join(before.dataDir, 'layers', hexOf(blob.layer));
  const map = await readFile(join(folder(mapless), 'map'));
  await writeFile(join(folder(mapless), 'map'), map.fill(0, map.length >> 1));
  await writeFile(join(folder(recordless), 'layer.json'), '');
  const { store } = setup(blobs, { folder: before.dataDir });
  await store.start(never);
  assert.deepEqual([...store.layers.keys()].sort(), [whole.layer, mapless.layer].sort());
  await store.mountOf(whole.layer, never);
  await Promise.all([store.mountOf(mapless.layer, never), store.provide(mapless.request(), never)]);
  await assert.rejects(store.mountOf(recordless.layer, never), { name: 'NotLazyError' });
  await store.provide(recordless.request(), never);
  for (const blob of blobs) await readWhole(store, blob);
  await store.close();
});

test('a cache file that was cut short is not believed', async () => {
  const blob = new FakeBlob('h', 8);
  const before = setup([blob]);
  await before.store.start(never);
  await before.store.provide(blob.request(), never);
  await readWhole(before.store, blob);
  await before.store.close();
  {
    await using image = await open(join(before.dataDir, 'layers', hexOf(blob.layer), 'image'), 'r+');
    await image.truncate(blob.image.metadata.length + 5000);
  }
  const { store } = setup([blob], { folder: before.dataDir });
  await store.start(never);
  await readWhole(store, blob);
  await store.close();
});

test('the quota evicts what is not mounted, and what is read stays right', async () => {
  const [old, mounted, fresh] = [new FakeBlob('i', 20), new FakeBlob('j', 20), new FakeBlob('k', 20)];
  const { store, dataDir } = setup([old, mounted, fresh], { quotaBytes: 500_000 });
  await store.start(never);
  for (const blob of [old, mounted, fresh]) {
    await store.provide(blob.request(), never);
    await readWhole(store, blob);
  }
  await store.release(old.layer, never);
  assert.deepEqual((await readdir(join(dataDir, 'layers'))).sort(), [hexOf(mounted.layer), hexOf(fresh.layer)].sort());
  assert.equal(store.byName(`${hexOf(old.layer)}.img`), undefined);
  await readWhole(store, mounted);
  await store.provide(old.request(), never);
  await readWhole(store, old);
  await store.close();
});

test('a layer without an index is made from one pass over its blob, and one that lies is refused', async () => {
  const [honest, liar] = [new FakeBlob('l', 30), new FakeBlob('m', 30)];
  liar.lying = true;
  const { store, dataDir } = setup([honest, liar], { indexes: [] });
  await store.start(never);
  await store.provide(honest.request(), never);
  assert.equal(store.layers.get(honest.layer)?.complete, true);
  const file = store.byName(`${hexOf(honest.layer)}.img`);
  assert.ok(file);
  const image = await store.read(file, 0, file.sizeBytes, never);
  for (const at of [0, 7, 29]) assert.ok(Buffer.from(image).includes(Buffer.alloc(10_000, `l ${at} `)));
  await assert.rejects(store.provide(liar.request(), never), { name: 'NotLazyError', code: 'refused' });
  assert.deepEqual(await readdir(join(dataDir, 'layers')), [hexOf(honest.layer)]);
  await store.close();
});

test('an index that was made here is told to others, and theirs is used in place of the blob', async () => {
  const blob = new FakeBlob('o', 10);
  const told: Uint8Array[] = [];
  const streamed = new BlobStreamer({
    keepIndex: true,
    registry: {
      async *blobStream() {
        yield await Promise.resolve(Buffer.from(blob.bytes));
      },
    },
  });
  const publishIndex = (layer: Digest, index: Uint8Array) => {
    assert.equal(layer, blob.layer);
    told.push(index);
    return Promise.resolve();
  };
  const first = setup([blob], { indexes: [], streamed, publishIndex });
  await first.store.start(never);
  await first.store.provide(blob.request(), never);
  while (told.length === 0) await turn();
  await first.store.close();
  const [index] = told;
  assert.ok(index);
  const second = setup([blob], { indexes: [{ find: () => Promise.resolve(index) }], publishIndex });
  await second.store.start(never);
  await second.store.provide(blob.request(), never);
  assert.equal(second.store.layers.get(blob.layer)?.complete, false);
  assert.equal(blob.reads.length, 0);
  await second.store.close();
  assert.equal(told.length, 1);
});

test('an index that is of another layer, or broken, does not keep a layer from starting', async () => {
  const blob = new FakeBlob('n', 6);
  const { store } = setup([blob], { indexes: [{ find: () => Promise.resolve(Buffer.from('no index')) }] });
  await store.start(never);
  await store.provide(blob.request(), never);
  assert.equal(store.layers.get(blob.layer)?.complete, true);
  await store.close();
});

test('what is unknown is refused with the reason', async () => {
  const { store } = setup([]);
  await store.start(never);
  await assert.rejects(store.mountOf(sha256(Buffer.from('nothing')), never), {
    name: 'NotLazyError',
    code: 'no-index',
  });
  await store.close();
});
