import assert from 'node:assert/strict';
import { test } from 'node:test';
import { sha256, type Digest } from '#shared/digest/digest.ts';
import type { LayerStore } from '../layers/layer-store.ts';
import { LayerHolder } from './layer-holder.ts';

/** Of the store only what sharing looks at. */
class FakeStore {
  readonly layers = new Map<Digest, object>();
  resident: (layer: Digest, span: number) => void = () => {};

  add(name: string, format: string): Digest {
    const layer = sha256(Buffer.from(name));
    this.layers.set(layer, {
      record: { format, spanCount: 3 },
      residencyBytes: Buffer.from([7]),
      has: () => true,
      readPayload: () => Promise.resolve(Buffer.from(name)),
    });
    return layer;
  }

  onResident(listener: (layer: Digest, span: number) => void): void {
    this.resident = listener;
  }

  onRemoved(): void {}
}

test('a layer by a SOCI index is neither announced nor given to other nodes', async () => {
  const store = new FakeStore();
  const [own, soci] = [store.add('own', 'gzip'), store.add('soci', 'soci')];
  const holder = new LayerHolder();
  const announced: Digest[] = [];
  holder.onResident((layer) => announced.push(layer));
  holder.attach(store as unknown as LayerStore);
  store.resident(own, 0);
  store.resident(soci, 0);
  assert.deepEqual(announced, [own]);
  assert.deepEqual(
    holder.layers().map(({ layer }) => layer),
    [own],
  );
  assert.equal(holder.get(soci), undefined);
  assert.deepEqual([holder.has(own, 0), holder.has(soci, 0)], [true, false]);
  assert.equal((await holder.readPayload(own, 0))?.toString(), 'own');
  assert.equal(await holder.readPayload(soci, 0), undefined);
});
