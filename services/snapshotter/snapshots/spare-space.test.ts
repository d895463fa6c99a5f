import assert from 'node:assert/strict';
import { existsSync, statSync } from 'node:fs';
import { test } from 'node:test';
import { SmallDisk } from '#test/harness/small-disk.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { SnapshotStore } from './snapshot-store.ts';

test('snapshots can be removed when the disk is full, and the room for that is taken again later', {
  skip: process.getuid?.() === 0 ? false : 'a disk of its own needs root',
}, async ({ signal }) => {
  await using folder = await TempFolder.create('sp');
  await using disk = await SmallDisk.create(folder.join('disk'), 8, signal);
  const path = `${disk.folder}/snapshots.db`;
  const spare = `${path}-spare`;
  const store = new SnapshotStore(path, () => 1n);
  try {
    const names = Array.from({ length: 30 }, (_, i) => `s${i}`);
    const labels = { filler: 'x'.repeat(1000) };
    for (const name of names) store.create({ name, kind: 'active', parent: '', labels });
    assert.ok(statSync(spare).size > 0);
    await disk.fill(signal);
    // The log of changes may have a little room of its own.
    assert.throws(() => {
      for (let i = 0; i < 10_000; i++) store.create({ name: `more${i}`, kind: 'active', parent: '', labels });
    });
    for (const name of names) store.remove(name);
    assert.equal(store.find('s0'), undefined);
    assert.equal(existsSync(spare), false);
    store.spare();
    await disk.free();
    store.spare();
    assert.equal(existsSync(spare), true);
  } finally {
    store.close();
  }
});
