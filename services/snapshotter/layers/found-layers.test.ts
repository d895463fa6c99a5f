import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { hexOf, type Digest } from '#shared/digest/digest.ts';
import { fakeMember, fakeTar, indexOfTar } from '#shared/layer/fake-layer.ts';
import { buildLayerImage } from '#shared/layer/layer-image.ts';
import { parseSpanMap } from '#shared/layer/span-map-file.ts';
import type { LayerFile, LayerFiles } from '../fuse/layer-files.ts';
import { FoundLayers } from './found-layers.ts';
import { imageInodeOf, LAYER_FILES } from './layer-folder.ts';
import { Residency } from './residency.ts';

const never = new AbortController().signal;
const root = await mkdtemp(join(tmpdir(), 'kindling-found-'));
after(async () => await rm(root, { recursive: true, force: true }));

let nodes = 0;

/** A data folder as an agent leaves it that was killed: one layer of several spans, of which the first is here. */
class LeftNode {
  readonly dataDir = join(root, `node-${nodes++}`);
  readonly layer: Digest;
  readonly image: Buffer;
  readonly mapFile: Buffer;
  readonly map;

  constructor() {
    const members = Array.from({ length: 8 }, (_, at) => fakeMember(`f${at}`, 'file', Buffer.alloc(10_000, `${at} `)));
    const tar = fakeTar(members);
    const index = indexOfTar(tar, 20_480);
    const built = buildLayerImage(index);
    this.layer = index.layer;
    this.map = parseSpanMap(built.map);
    this.image = Buffer.concat([built.metadata, Buffer.alloc(built.imageSize - built.metadata.length)]);
    for (let span = 0; span < this.map.spanCount; span++) {
      const from = this.map.blobStart(span);
      for (const { decodedOffset, imageOffset, length } of this.map.extents(span)) {
        tar.copy(this.image, imageOffset, from + decodedOffset, from + decodedOffset + length);
      }
    }
    this.mapFile = built.map;
  }

  file(name: keyof typeof LAYER_FILES): string {
    return join(this.dataDir, 'layers', hexOf(this.layer), LAYER_FILES[name]);
  }

  async write(resident: readonly number[], bootId?: string): Promise<void> {
    const { spanCount } = this.map;
    await mkdir(join(this.file('record'), '..'), { recursive: true });
    const residency = new Residency(spanCount);
    for (const span of resident) residency.add(span);
    const here = (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim();
    await writeFile(join(this.dataDir, 'boot.json'), JSON.stringify({ bootId: bootId ?? here, clean: false }));
    await writeFile(this.file('record'), JSON.stringify({ imageSize: this.image.length, spanCount }));
    await writeFile(this.file('map'), this.mapFile);
    await writeFile(this.file('image'), this.image);
    await writeFile(this.file('residency'), residency.toBytes());
  }

  async find(): Promise<{ readonly found: FoundLayers; readonly file: LayerFile }> {
    const found = await FoundLayers.find(this.dataDir, never);
    assert.ok(found);
    const file = found.byInode(imageInodeOf(hexOf(this.layer)));
    assert.ok(file);
    return { found, file };
  }

  /** A store that answers every read with bytes of its own, so that it shows who answered. */
  store(file: LayerFile): LayerFiles {
    return {
      list: () => [file],
      byName: (name) => (name === file.name ? file : undefined),
      byInode: (inode) => (inode === file.inode ? file : undefined),
      read: (_, __, length) => Promise.resolve(new Uint8Array(length).fill(0x5a)),
    };
  }
}

const isStores = (bytes: Uint8Array): boolean => bytes.every((byte) => byte === 0x5a);

describe('the layers that a killed agent left', () => {
  it('are served where they are here, and wait for the store where they are not', async () => {
    const node = new LeftNode();
    await node.write([0]);
    const { found, file } = await node.find();
    assert.equal(file.sizeBytes, node.image.length);
    assert.equal(found.byName(file.name), file);
    assert.deepEqual(Buffer.from(await found.read(file, 0, 4096, never)), node.image.subarray(0, 4096));
    const start = node.map.imageStart(0);
    const into = new Uint8Array(8192);
    const bytes = await found.read(file, start, 8192, never, into);
    assert.deepEqual(Buffer.from(bytes), node.image.subarray(start, start + 8192));
    assert.equal(bytes.buffer, into.buffer);
    assert.equal(found.served, 2);

    const missing = found.read(file, node.map.imageStart(1), 4096, never);
    // A read that needs one byte of it waits as well.
    const both = found.read(file, start, node.map.imageEnd(1) - start, never);
    found.handOver(node.store(file));
    assert.ok(isStores(await missing));
    assert.ok(isStores(await both));
    assert.ok(isStores(await found.read(file, 0, 4096, never)));
    assert.equal(found.served, 2);
  });

  it('tell when those who waited for the store have been answered, with bytes or an error', async () => {
    const node = new LeftNode();
    await node.write([0]);
    const { found, file } = await node.find();
    const bytes = Promise.withResolvers<Uint8Array>();
    const error = Promise.withResolvers<Uint8Array>();
    const answers = [bytes.promise, error.promise];
    const waiting = answers.map(() => found.read(file, node.map.imageStart(1), 4096, never));
    found.handOver({ ...node.store(file), read: () => answers.shift() ?? Promise.reject(new Error('not asked')) });
    let answered = 0;
    void waiting[0]?.then(() => answered++);
    waiting[1]?.catch(() => answered++);
    const all = found.waitersAnswered().then(() => assert.equal(answered, 2));
    bytes.resolve(new Uint8Array(4096));
    await waiting[0];
    error.reject(new Error('no source has it'));
    await all;
  });

  it('need no map where every span is here, and end where the file ends', async () => {
    const node = new LeftNode();
    await node.write(Array.from({ length: node.map.spanCount }, (_, span) => span));
    await rm(node.file('map'));
    const { found, file } = await node.find();
    const tail = await found.read(file, node.image.length - 100, 4096, never);
    assert.deepEqual(Buffer.from(tail), node.image.subarray(-100));
    found.handOver(node.store(file));
  });

  it('are left to the store where they are suspect, cut short or unreadable', async () => {
    const damages: readonly ((node: LeftNode) => Promise<void>)[] = [
      (node) => writeFile(node.file('suspect'), ''),
      (node) => truncate(node.file('image'), node.image.length - 1),
      (node) => rm(node.file('residency')),
      (node) => truncate(node.file('map'), 200),
    ];
    for (const damage of damages) {
      const node = new LeftNode();
      await node.write([0]);
      await damage(node);
      const { found, file } = await node.find();
      const read = found.read(file, 0, 4096, never);
      found.handOver(node.store(file));
      assert.ok(isStores(await read));
    }
  });

  it('are not served at all after a boot that was not clean', async () => {
    const node = new LeftNode();
    await node.write([0], 'another boot');
    assert.equal(await FoundLayers.find(node.dataDir, never), undefined);
  });

  it('let a reader go that has given up waiting', async () => {
    const node = new LeftNode();
    await node.write([]);
    const { found, file } = await node.find();
    const end = new AbortController();
    const read = found.read(file, node.map.imageStart(0), 4096, end.signal);
    end.abort(new Error('killed'));
    await assert.rejects(read, /killed/);
  });
});
