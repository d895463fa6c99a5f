import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { sha256 } from '#shared/digest/digest.ts';
import { SnapshotStore } from './snapshot-store.ts';

const layer = sha256(Buffer.from('layer'));

function storePath(context: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'kindling-store-'));
  context.after(() => rmSync(folder, { recursive: true }));
  return join(folder, 'snapshots.db');
}

function clock(): () => bigint {
  let now = 1_700_000_000_000_000_001n;
  return () => now++;
}

test('A chain is found again by another process, parent first, with times to the nanosecond', (context) => {
  const path = storePath(context);
  const first = new SnapshotStore(path, clock());
  first.create({
    name: 'a',
    kind: 'committed',
    parent: '',
    labels: { x: 'y' },
    layer,
    hasCover: true,
    owner: { uid: 1, gid: 2 },
  });
  first.create({ name: 'b-key', kind: 'active', parent: 'a', labels: {} });
  first.commit('b-key', 'b', { l: '1' }, '', { uid: 0, gid: 0 });
  const active = first.create({ name: 'c', kind: 'active', parent: 'b', labels: {} });
  first.close();
  first.close();
  const second = new SnapshotStore(path, clock());
  assert.deepEqual(
    second.ancestors(active).map(({ name }) => name),
    ['b', 'a'],
  );
  const a = second.get('a');
  assert.deepEqual(
    [a.layer, a.hasCover, a.owner, a.labels, a.createdAt],
    [layer, true, { uid: 1, gid: 2 }, { x: 'y' }, 1_700_000_000_000_000_001n],
  );
  assert.deepEqual(second.layers(), new Set([layer]));
  second.close();
});

test('An ID is never used twice, also when it was only reserved', (context) => {
  const store = new SnapshotStore(storePath(context), clock());
  const made = store.create({ name: 'a', kind: 'active', parent: '', labels: {} });
  store.remove('a');
  const reserved = store.reserveId();
  const next = store.create({ name: 'a', kind: 'active', parent: '', labels: {} });
  assert.equal(new Set([made.id, reserved, next.id]).size, 3);
  assert.deepEqual(store.ids(), new Set([next.id]));
  store.close();
});

test('A parent may be given at the commit only where there was none', (context) => {
  const store = new SnapshotStore(storePath(context), clock());
  const owner = { uid: 0, gid: 0 };
  store.create({ name: 'base', kind: 'committed', parent: '', labels: {} });
  store.create({ name: 'other', kind: 'committed', parent: '', labels: {} });
  store.create({ name: 'k1', kind: 'active', parent: '', labels: {} });
  assert.equal(store.commit('k1', 'rebased', {}, 'base', owner).parent, 'base');
  store.create({ name: 'k2', kind: 'active', parent: 'base', labels: {} });
  assert.throws(() => store.commit('k2', 'x', {}, 'other', owner), { code: 'invalid' });
  assert.equal(store.commit('k2', 'x', {}, 'base', owner).parent, 'base');
  store.close();
});

test('A snapshot of a chain ID is found for its own parent only', (context) => {
  const store = new SnapshotStore(storePath(context), clock());
  const label = 'containerd.io/snapshot.ref';
  store.create({ name: 'p', kind: 'committed', parent: '', labels: {} });
  store.create({ name: 'x', kind: 'committed', parent: 'p', labels: { [label]: 'chain' }, layer });
  assert.equal(store.findTarget(label, 'chain', 'p')?.name, 'x');
  assert.equal(store.findTarget(label, 'chain', ''), undefined);
  assert.equal(store.findTarget(label, 'other', 'p'), undefined);
  store.close();
});

test('Reasons why layers are not lazy are kept, newest first, until the layer is lazy', (context) => {
  const store = new SnapshotStore(storePath(context), clock());
  const other = sha256(Buffer.from('other'));
  store.recordNotLazy({ layer, imageReference: 'a', code: 'no-index', reason: 'first' });
  store.recordNotLazy({ layer: other, imageReference: 'b', code: 'refused', reason: 'second' });
  store.recordNotLazy({ layer, imageReference: 'a', code: 'unreachable', reason: 'third' });
  assert.deepEqual(
    store.notLazy().map(({ reason }) => reason),
    ['third', 'second'],
  );
  store.forgetNotLazy(layer);
  assert.deepEqual(
    store.notLazy().map(({ reason }) => reason),
    ['second'],
  );
  store.close();
});

test('Whatever a process has been told is done is there after it was killed', async (context) => {
  const path = storePath(context);
  const script = `
    import { SnapshotStore } from ${JSON.stringify(new URL('./snapshot-store.ts', import.meta.url).href)};
    const store = new SnapshotStore(process.argv[1], () => 1n);
    for (let i = 0; ; i++) {
      store.create({ name: 'k' + i, kind: 'active', parent: i === 0 ? '' : 's' + (i - 1), labels: {} });
      store.commit('k' + i, 's' + i, {}, '', { uid: 0, gid: 0 });
      process.stdout.write(i + '\\n');
    }`;
  const child = spawn(
    process.execPath,
    ['--disable-warning=ExperimentalWarning', '--input-type=module', '-e', script, path],
    {
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  );
  let last = -1;
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    const lines = text.split('\n').filter((line) => line !== '');
    last = Number(lines.at(-1) ?? last);
    if (last > 20) child.kill('SIGKILL');
  });
  await once(child, 'close');
  const store = new SnapshotStore(path, clock());
  const names = [...store.all()].map(({ name }) => name);
  assert.ok(names.length > last, `${names.length} snapshots, but ${last} was reported`);
  // At most the one under way is an uncommitted one.
  assert.ok(names.slice(0, last + 1).every((name, i) => name === `s${i}`));
  store.close();
});
