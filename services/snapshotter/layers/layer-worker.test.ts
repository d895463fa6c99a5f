import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtemp, open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { fakeTocLayer } from '#shared/layer/fake-toc-layer.ts';
import { buildLayerImage } from '#shared/layer/layer-image.ts';
import { parseSpanMap } from '#shared/layer/span-map-file.ts';
import type { ImageRange } from './early-reads.ts';
import { WorkerPool } from './worker-pool.ts';

const folder = await mkdtemp(join(tmpdir(), 'kindling-worker-'));
const workers = new WorkerPool({ size: 2 });
after(async () => {
  await workers.close();
  await rm(folder, { recursive: true });
});

const files = Array.from({ length: 20 }, () => randomBytes(6_000));
const { blob, index } = fakeTocLayer('estargz', files);
const mapBytes = buildLayerImage(index).map;
const map = parseSpanMap(mapBytes);
const shared = new SharedArrayBuffer(mapBytes.length);
new Uint8Array(shared).set(mapBytes);

/** Stores the span from these bytes; tells what happened in which order, and what the file has of the wanted file then. */
async function store(name: string, bytes: Buffer, file: number) {
  await using image = await open(join(folder, name), 'w+');
  await image.truncate(map.imageSize);
  const extent = map.extents(0)[file];
  assert.ok(extent);
  const wanted: ImageRange[] = [[extent.imageOffset, extent.imageOffset + 100]];
  const own = new Uint8Array(bytes);
  const happened: string[] = [];
  const result = await workers.run(
    {
      kind: 'store',
      map: { layer: index.layer, bytes: shared },
      fd: image.fd,
      span: 0,
      form: 'compressed',
      bytes: own,
      wanted,
    },
    'demand',
    [own.buffer],
    () => happened.push('early'),
  );
  happened.push(result);
  const content = Buffer.alloc(extent.length);
  await image.read(content, 0, content.length, extent.imageOffset);
  return { happened, content };
}

test('what a reader waits for is in the file before the rest of its span', async () => {
  const { happened, content } = await store('right', blob, 7);
  assert.deepEqual(happened, ['early', 'stored']);
  assert.deepEqual(content, files[7]);
});

test('a reader goes on with what is right of a span that is wrong elsewhere, and gets nothing that is wrong', async () => {
  const lying = Buffer.from(blob);
  const segment = map.segments(0)[3];
  assert.ok(segment);
  lying.fill(0x55, segment.blobOffset + 20, segment.blobOffset + 60);
  const elsewhere = await store('elsewhere', lying, 7);
  assert.deepEqual(elsewhere.happened, ['early', 'mismatch']);
  assert.deepEqual(elsewhere.content, files[7]);
  const here = await store('here', lying, 3);
  assert.deepEqual(here.happened, ['mismatch']);
  assert.deepEqual(here.content, Buffer.alloc(6_000), 'nothing of it was written');
});
