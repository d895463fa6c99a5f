import assert from 'node:assert/strict';
import { mkdtemp, open, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { zstdCompressSync } from 'node:zlib';
import { hexOf, sha256 } from '#shared/digest/digest.ts';
import { fakeMember, fakeTar, indexOfTar } from '#shared/layer/fake-layer.ts';
import { encodeLayerIndex } from '#shared/layer/index-codec.ts';
import { buildLayerImage } from '#shared/layer/layer-image.ts';
import { parseSpanMap } from '#shared/layer/span-map-file.ts';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { Registry } from '#shared/telemetry/metrics.ts';
import type { Mounter } from '../mounts/mounter.ts';
import { BlobStreamer } from './blob-streamer.ts';
import { LayerMounts } from './layer-mounts.ts';
import { LayerStatistics } from './layer-statistics.ts';
import { LayerStore } from './layer-store.ts';
import { RegistrySource } from './registry-source.ts';
import { StreamSource } from './stream-source.ts';
import { WorkerPool } from './worker-pool.ts';

const never = new AbortController().signal;
const root = await mkdtemp(join(tmpdir(), 'kindling-streamed-'));
const workers = new WorkerPool({ size: 2 });
after(async () => {
  await workers.close();
  await rm(root, { recursive: true, force: true });
});

const FILES = 12;
const TAR = fakeTar(
  Array.from({ length: FILES }, (_, at) => fakeMember(`f${at}`, 'file', Buffer.alloc(10_000, `file ${at} `))),
);
const BLOB = zstdCompressSync(TAR);
const LAYER = sha256(BLOB);
const PLAIN = indexOfTar(TAR, 20_480);
/** As of a frame that is too large to be decoded from its front for each span. */
const INDEX = {
  ...PLAIN,
  layer: LAYER,
  blobSize: BLOB.length,
  format: 'zstd' as const,
  spans: PLAIN.spans.map((span) => ({
    ...span,
    segments: [{ blobOffset: 0, blobLength: 0, skip: 0, length: span.streamLength }],
  })),
};
const IMAGE = buildLayerImage(INDEX);
const REQUEST = {
  imageReference: 'r.example/app:1',
  layer: LAYER,
  sizeBytes: BLOB.length,
  mediaType: 'application/vnd.oci.image.layer.v1.tar+zstd',
  annotations: {},
  manifest: undefined,
};

const NO_MOUNTS: Mounter = {
  mountErofs: () => Promise.resolve({ via: 'file' }),
  mount: () => Promise.resolve(),
  unmount: () => Promise.resolve(),
  mountsWithin: () => Promise.resolve([]),
};

/** A store whose registry serves `registry.blob`, and counts how often. */
async function startStore(dataDir: string) {
  const registry = { blob: BLOB, passes: 0 };
  const client = {
    async *blobRange(_repository: string, _layer: string, start: number, end: number) {
      registry.passes++;
      for (let at = start; at < end; at += 500) yield await Promise.resolve(registry.blob.subarray(at, at + 500));
    },
  };
  const statistics = new LayerStatistics({ metrics: new Registry(), logger: silentLogger });
  const unused = () => Promise.reject(new Error('not asked for'));
  const store = new LayerStore({
    dataDir,
    fuseDir: '/fuse',
    mounts: new LayerMounts(join(dataDir, 'm'), NO_MOUNTS),
    workers,
    registry: { tail: unused, platformManifest: unused, blob: unused },
    indexes: [{ find: () => Promise.resolve(encodeLayerIndex(INDEX)) }],
    streamed: new BlobStreamer({ registry: { blobStream: () => assert.fail('read whole in spite of its index') } }),
    sources: [new StreamSource(new RegistrySource(client), client)],
    statistics,
    logger: silentLogger,
    limits: { backOffMs: 1, maxBackOffMs: 1, quietMs: 0 },
    quotaBytes: 0,
    background: false,
  });
  await store.start(never);
  const read = async (offset: number, length: number): Promise<Buffer> => {
    const file = store.byName(`${hexOf(LAYER)}.img`);
    assert.ok(file);
    return Buffer.from(await store.read(file, offset, length, never));
  };
  const readWhole = async (): Promise<void> => {
    for (const { offset, bytes } of contents()) assert.deepEqual(await read(offset, bytes.length), bytes);
  };
  return { store, registry, statistics, read, readWhole };
}

/** What a reader must see. */
function* contents(): Generator<{ readonly offset: number; readonly bytes: Buffer }> {
  const map = parseSpanMap(IMAGE.map);
  let from = 0;
  for (let span = 0; span < map.spanCount; span++) {
    for (const { decodedOffset, imageOffset, length } of map.extents(span)) {
      yield { offset: imageOffset, bytes: TAR.subarray(from + decodedOffset, from + decodedOffset + length) };
    }
    from += map.decodedLength(span);
  }
}

test('a layer of one zstd frame is mounted at once, and one pass over its blob brings all of it to its readers', async () => {
  const { store, registry, statistics, readWhole } = await startStore(join(root, 'a'));
  await store.provide(REQUEST, never);
  assert.equal(registry.passes, 0);
  await readWhole();
  assert.equal(registry.passes, 1);
  assert.equal(store.layers.get(LAYER)?.complete, true);
  const { bytesBySource } = statistics.figures(LAYER);
  assert.ok(bytesBySource.registry > 0 && bytesBySource.registry <= BLOB.length);
  await store.close();
});

test('a span that does not match its digest is never readable, what passed before it is', async () => {
  const { store, registry, read, readWhole } = await startStore(join(root, 'b'));
  await store.provide(REQUEST, never);
  const all = [...contents()];
  const [first] = all;
  const wrong = all[all.length >> 1];
  assert.ok(first && wrong);
  const changed = Buffer.from(TAR);
  changed[TAR.indexOf('file 6 ') + 100] = 0;
  registry.blob = zstdCompressSync(changed);
  assert.deepEqual(await read(first.offset, first.bytes.length), first.bytes);
  await assert.rejects(
    async () => {
      for (const { offset, bytes } of all) await read(offset, bytes.length);
    },
    { code: 'mismatch' },
  );
  registry.blob = BLOB;
  await readWhole();
  await store.close();
});

test('after an unclean boot what is on the disk is verified, and a pass brings what was lost', async () => {
  const dataDir = join(root, 'c');
  const before = await startStore(dataDir);
  await before.store.provide(REQUEST, never);
  await before.readWhole();
  await before.store.close();
  await writeFile(join(dataDir, 'boot.json'), JSON.stringify({ bootId: 'another boot', clean: false }));
  const lost = [...contents()].at(-2);
  assert.ok(lost);
  {
    await using image = await open(join(dataDir, 'layers', hexOf(LAYER), 'image'), 'r+');
    await image.write(Buffer.alloc(lost.bytes.length), 0, lost.bytes.length, lost.offset);
  }
  const later = await startStore(dataDir);
  await later.readWhole();
  assert.equal(later.registry.passes, 1);
  await later.store.close();
});
