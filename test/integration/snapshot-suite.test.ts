/** The behaviours of containerd's own suite for snapshotters (core/snapshots/testsuite), under their original names. */
import assert from 'node:assert/strict';
import {
  chmodSync,
  chownSync,
  linkSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { ContainerdError, type ContainerdErrorCode } from '#shared/containerd/containerd-error.ts';
import { Kind } from '#shared/containerd/gen/snapshots.ts';
import { describeTree, SnapshotRig } from '#test/harness/snapshot-rig.ts';

const skip = process.getuid?.() === 0 ? false : 'mounting overlayfs needs root';
const GC_ROOT = { 'containerd.io/gc.root': '2024-01-01T00:00:00Z' };

type Apply = (root: string) => void;

function check(name: string, work: (rig: SnapshotRig) => Promise<void>): void {
  test(name, { skip }, async (context) => {
    const umask = process.umask(0);
    try {
      await using rig = await SnapshotRig.start(context.signal);
      await work(rig);
    } finally {
      process.umask(umask);
    }
  });
}

function rejected(code: ContainerdErrorCode, text = ''): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof ContainerdError, String(error));
    assert.equal(error.code, code);
    assert.ok(error.message.includes(text), error.message);
    return true;
  };
}

const file =
  (path: string, content: string, mode = 0o644): Apply =>
  (root) => {
    writeFileSync(join(root, path), content);
    chmodSync(join(root, path), mode);
  };
const folder =
  (path: string, mode = 0o755): Apply =>
  (root) =>
    mkdirSync(join(root, path), { mode });
const gone =
  (path: string): Apply =>
  (root) =>
    rmSync(join(root, path), { recursive: true });
const owner =
  (path: string, id: number): Apply =>
  (root) =>
    chownSync(join(root, path), id, id);
const all =
  (...steps: readonly Apply[]): Apply =>
  (root) => {
    for (const step of steps) step(root);
  };

/** Applies each step as a layer and to a flat folder; after each, both must be the same. */
async function checkSnapshots(rig: SnapshotRig, ...layers: readonly Apply[]): Promise<void> {
  const flat = rig.folder.join('flat');
  mkdirSync(flat);
  let parent = '';
  for (const [i, apply] of layers.entries()) {
    apply(flat);
    await rig.layer(`layer-${i}`, parent, apply);
    parent = `layer-${i}`;
    const seen = await rig.mounted(await rig.view(`view-${i}`, parent), describeTree);
    assert.deepEqual(seen, describeTree(flat));
    await rig.remove(`view-${i}`);
  }
}

check('Basic', async (rig) => {
  const initial = all(file('foo', 'foo\n', 0o777), folder('a'), folder('a/b'), folder('a/b/c'));
  const diff = all(file('bar', 'bar\n', 0o777), file('foo', 'bar\n', 0o777), gone('a/b'));
  await rig.mounted(await rig.prepare('preparing', '', GC_ROOT), initial);
  await rig.commit('committed', 'preparing', GC_ROOT);
  const info = await rig.stat('committed');
  assert.equal(info.parent, '');
  assert.equal(info.kind, Kind.COMMITTED);
  await assert.rejects(rig.stat('preparing'), rejected('not-found'));
  await rig.mounted(await rig.prepare('next', 'committed', GC_ROOT), (root) => {
    assert.equal(readFileSync(join(root, 'foo'), 'utf8'), 'foo\n');
    assert.ok(statSync(join(root, 'a/b/c')).isDirectory());
    diff(root);
  });
  assert.equal((await rig.stat('next')).parent, 'committed');
  assert.equal((await rig.stat('next')).kind, Kind.ACTIVE);
  await rig.commit('committed-next', 'next', GC_ROOT);
  const next = await rig.stat('committed-next');
  assert.equal(next.parent, 'committed');
  assert.equal(next.kind, Kind.COMMITTED);
  assert.deepEqual(await rig.list(), [info, next]);
  await rig.mounted(await rig.view('nextnext', 'committed-next', GC_ROOT), (root) => {
    assert.equal(readFileSync(join(root, 'foo'), 'utf8'), 'bar\n');
    assert.throws(() => statSync(join(root, 'a/b')));
  });
  await rig.remove('nextnext');
  await assert.rejects(rig.remove('committed'), rejected('failed-precondition', 'remove'));
  await rig.remove('committed-next');
  await rig.remove('committed');
  assert.deepEqual(await rig.list(), []);
});

check('StatActive', async (rig) => {
  await rig.prepare('preparing');
  const info = await rig.stat('preparing');
  assert.deepEqual([info.name, info.kind, info.parent], ['preparing', Kind.ACTIVE, '']);
});

check('StatComitted', async (rig) => {
  await rig.layer('committed', '', file('foo', 'foo\n'));
  const info = await rig.stat('committed');
  assert.deepEqual([info.name, info.kind, info.parent], ['committed', Kind.COMMITTED, '']);
});

check('TransitivityTest', async (rig) => {
  await rig.layer('a', '', file('foo', 'foo\n'));
  await rig.layer('b', 'a', file('foo', 'foo bar\n'));
  assert.equal((await rig.stat('a')).parent, '');
  assert.equal((await rig.stat('b')).parent, 'a');
});

check('PreareViewFailingtest', async (rig) => {
  await rig.layer('a', '', () => undefined);
  await rig.prepare('new', 'a');
  await assert.rejects(rig.view('new', 'a'), rejected('already-exists'));
  await assert.rejects(rig.prepare('new', 'a'), rejected('already-exists'));
  await rig.view('seen', 'a');
  await assert.rejects(rig.view('seen', 'a'), rejected('already-exists'));
  await assert.rejects(rig.prepare('lost', 'nowhere'), rejected('not-found'));
  await assert.rejects(rig.prepare('on-active', 'new'), rejected('invalid'));
  await assert.rejects(rig.commit('x', 'seen'), rejected('failed-precondition'));
  await assert.rejects(rig.commit('a', 'new'), rejected('already-exists'));
  await assert.rejects(rig.mounts('a'), rejected('failed-precondition'));
});

check('Update', async (rig) => {
  const before = BigInt(Date.now()) * 1_000_000n;
  await rig.prepare('c1-a', '', GC_ROOT);
  await rig.commit('c1', 'c1-a', GC_ROOT);
  await rig.prepare('a1', 'c1', GC_ROOT);
  await rig.view('v1', 'c1', GC_ROOT);
  for (const name of ['c1', 'a1', 'v1']) {
    const info = await rig.stat(name);
    const created = info.createdAt;
    assert.ok(created !== undefined && BigInt(created.seconds) * 1_000_000_000n + BigInt(created.nanos) >= before);
    assert.deepEqual(info.updatedAt, created);
    const labels = { l1: 'v1', l2: 'v2', l3: 'v3', ...GC_ROOT };
    let updated = await rig.update({ ...info, parent: 'doesnotexist', labels }, []);
    assert.deepEqual({ ...updated, updatedAt: undefined }, { ...info, labels, updatedAt: undefined });
    assert.notDeepEqual(updated.updatedAt, info.updatedAt);
    updated = await rig.update({ ...info, labels: { l1: 'updated', l4: 'v4' } }, ['labels.l1', 'labels.l2']);
    assert.deepEqual(updated.labels, { l1: 'updated', l3: 'v3', ...GC_ROOT });
    updated = await rig.update({ ...info, labels: { l4: 'v4', ...GC_ROOT } }, ['labels']);
    assert.deepEqual(updated.labels, { l4: 'v4', ...GC_ROOT });
    await assert.rejects(rig.update({ ...info, parent: 'doesnotexist' }, ['parent']), rejected('invalid'));
  }
});

check('Remove', async (rig) => {
  await rig.prepare('committed-a');
  await rig.commit('committed-1', 'committed-a');
  await rig.prepare('reuse-1', 'committed-1');
  await rig.remove('reuse-1');
  await rig.view('reuse-1', 'committed-1');
  await rig.remove('reuse-1');
  await rig.prepare('reuse-1');
  await rig.remove('committed-1');
  await rig.commit('committed-1', 'reuse-1');
  await assert.rejects(rig.remove('reuse-1'), rejected('not-found'));
});

check('Walk', async (rig) => {
  const labels = (value?: string): Record<string, string> => ({
    'containerd.io/gc.root': 'check-walk',
    ...(value === undefined ? {} : { l: value }),
  });
  await rig.prepare('a-np', '', labels());
  await rig.prepare('p-tmp', '', labels());
  await rig.commit('p', 'p-tmp', labels());
  await rig.prepare('a', 'p', labels());
  await rig.view('v', 'p', labels());
  await rig.prepare('p-wl-tmp', '', labels());
  await rig.commit('p-wl', 'p-wl-tmp', labels('1'));
  await rig.prepare('a-wl', 'p-wl', labels('2'));
  await rig.view('v-wl', 'p-wl', labels('3'));
  await rig.prepare('a-np-wl', '', labels('2'));
  const root = 'labels."containerd.io/gc.root"==check-walk';
  const cases: readonly (readonly [expected: string, ...filters: string[]])[] = [
    ['a a-np a-np-wl a-wl p p-wl v v-wl', root],
    ['a a-np a-np-wl a-wl', `kind==active,${root}`],
    ['v v-wl', `kind==view,${root}`],
    ['p p-wl', `kind==committed,${root}`],
    ['a-np-wl p', 'name==p', 'name==a-np-wl'],
    ['a-wl', 'name==a-wl,labels.l'],
    ['a v', 'parent==p'],
    ['a a-wl v v-wl', `parent!="",${root}`],
    ['a-np-wl a-wl p-wl v-wl', 'labels.l'],
    ['a-np-wl a-wl', 'labels.l==2'],
  ];
  for (const [expected, ...filters] of cases) {
    const names = (await rig.list(...filters)).map((info) => info.name);
    assert.equal(names.sort().join(' '), expected, filters.join(' or '));
  }
  await assert.rejects(rig.list('name=='), rejected('invalid', 'value'));
});

check('LayerFileupdate', async (rig) => {
  await checkSnapshots(
    rig,
    all(folder('etc', 0o700), file('etc/hosts', 'mydomain 10.0.0.1'), file('etc/profile', 'PATH=/usr/bin')),
    all(
      file('etc/hosts', 'mydomain 10.0.0.2'),
      file('etc/profile', 'PATH=/usr/bin', 0o666),
      folder('root', 0o700),
      file('root/.bashrc', 'PATH=/usr/sbin:/usr/bin'),
    ),
  );
});

check('RemoveDirectoryInLowerLayer', async (rig) => {
  await checkSnapshots(
    rig,
    all(folder('lib', 0o700), file('lib/hidden', '')),
    all(gone('lib'), folder('lib', 0o700), file('lib/not-hidden', '')),
    file('lib/newfile', ''),
  );
});

check('Chown', async (rig) => {
  await checkSnapshots(
    rig,
    all(folder('opt', 0o700), folder('opt/a', 0o700), folder('opt/a/b', 0o700), file('opt/a/b/file.txt', 'hello')),
    all(owner('opt', 1), owner('opt/a', 1), owner('opt/a/b', 1), owner('opt/a/b/file.txt', 1)),
    owner('opt/a', 2),
  );
});

check('DirectoryPermissionOnCommit', async (rig) => {
  await checkSnapshots(
    rig,
    all(
      ...['dir1', 'dir2', 'dir3', 'dir4', 'dir5'].map((name) => folder(name, 0o700)),
      file('dir4/f1', '...'),
      file('dir5/f1', '...'),
      ...['dir1', 'dir2', 'dir3', 'dir5', 'dir5/f1'].map((name) => owner(name, 1)),
    ),
    all(owner('dir2', 0), gone('dir3'), owner('dir4', 1), owner('dir4/f1', 1)),
    all(folder('dir3', 0o700), owner('dir3', 1), gone('dir5'), folder('dir5', 0o700), owner('dir5', 1)),
  );
});

check('RemoveIntermediateSnapshot', async (rig) => {
  await rig.layer('base', '', () => undefined);
  await rig.layer('middle', 'base', () => undefined);
  await rig.prepare('top', 'middle');
  await assert.rejects(rig.remove('middle'), rejected('failed-precondition', 'remove'));
  await rig.remove('top');
  await rig.remove('middle');
  await rig.remove('base');
});

check('DeletedFilesInChildSnapshot', async (rig) => {
  await checkSnapshots(rig, all(file('foo', 'foo\n'), file('foobar', 'foobar\n')), gone('foobar'), () => undefined);
});

check('MoveFileFromLowerLayer', async (rig) => {
  await checkSnapshots(
    rig,
    all(folder('dir1', 0o700), file('dir1/f1', 'Hello'), folder('dir2', 0o700), file('dir2/f2', '...')),
    all(folder('dir3', 0o700), file('dir3/f1', 'Hello'), gone('dir1'), (root) => {
      linkSync(join(root, 'dir2/f2'), join(root, 'dir3/f2'));
      unlinkSync(join(root, 'dir2/f2'));
    }),
  );
});

check('ViewReadonly', async (rig) => {
  await rig.layer('one', '', () => undefined);
  await rig.layer('two', 'one', () => undefined);
  for (const parent of ['one', 'two', '']) {
    await rig.mounted(await rig.view(`view-${parent}`, parent), (root) => {
      assert.throws(() => writeFileSync(join(root, 'testfile'), 'testcontent'), { code: 'EROFS' });
    });
  }
});

check('StatInWalk', async (rig) => {
  await rig.prepare('c1-a');
  await rig.commit('c1', 'c1-a');
  await rig.prepare('a1', 'c1');
  for (const info of await rig.list()) assert.deepEqual(await rig.stat(info.name), info);
});

check('CloseTwice', async (rig) => {
  await rig.layer('x', '', () => undefined);
  await rig.remove('x');
  await rig.service.close();
  await rig.service.close();
});

check('RootPermission', async (rig) => {
  process.umask(0o077);
  await rig.mounted(await rig.prepare('preparing'), (root) => {
    assert.equal(statSync(root).mode & 0o777, 0o755);
  });
  await rig.commit('base', 'preparing');
  await rig.mounted(await rig.prepare('next', 'base'), (root) => {
    assert.equal(statSync(root).mode & 0o777, 0o755);
  });
});

check('Rename', async (rig) => {
  await checkSnapshots(
    rig,
    all(
      folder('dir1', 0o700),
      file('dir1/inside', 'moves along'),
      folder('somefiles', 0o700),
      file('somefiles/f1', 'was here first!'),
      file('somefiles/f2', 'nothing interesting'),
    ),
    all(file('somefiles/f1-overwrite', 'new content 1'), (root) => {
      renameSync(join(root, 'somefiles/f1-overwrite'), join(root, 'somefiles/f1'));
      renameSync(join(root, 'somefiles/f2'), join(root, 'somefiles/f3'));
      renameSync(join(root, 'dir1'), join(root, 'dir2'));
    }),
    file('dir2/more', 'on top of it'),
  );
});

check('128LayersMount', async (rig) => {
  const flat = rig.folder.join('flat');
  mkdirSync(flat);
  let parent = '';
  for (let i = 0; i < 128; i++) {
    const apply: Apply =
      i === 0
        ? all(
            file('bottom', 'way at the bottom\n'),
            file('overwriteme', 'FIRST!\n'),
            folder('addhere'),
            folder('onlyme'),
          )
        : all(
            file('overwriteme', `${i} WAS HERE!\n`),
            file(`addhere/file-${i}`, 'same\n'),
            gone('onlyme'),
            folder('onlyme'),
            file(`onlyme/file-${i}`, 'only me!\n'),
          );
    apply(flat);
    await rig.layer(`committed-${i}`, parent, apply);
    parent = `committed-${i}`;
  }
  const seen = await rig.mounted(await rig.view('fullview', parent), describeTree);
  assert.deepEqual(seen, describeTree(flat));
});

check('Restart keeps every snapshot, and an orphaned folder goes', async (rig) => {
  await rig.layer('base', '', file('foo', 'foo\n'));
  await rig.prepare('active', 'base', GC_ROOT);
  const before = await rig.list();
  mkdirSync(rig.folder.join('s/4711/fs'), { recursive: true });
  rmSync(rig.folder.join(`s/2`), { recursive: true });
  await rig.restart();
  assert.deepEqual(await rig.list(), before);
  assert.throws(() => statSync(rig.folder.join('s/4711')));
  await rig.mounted(await rig.mounts('active'), (root) => {
    assert.equal(readFileSync(join(root, 'foo'), 'utf8'), 'foo\n');
  });
});

check('Usage counts what a snapshot itself holds', async (rig) => {
  await rig.layer('base', '', file('foo', 'x'.repeat(100_000)));
  await rig.layer('top', 'base', file('bar', 'y'));
  assert.ok((await rig.usage('base')).size >= 100_000);
  assert.ok((await rig.usage('top')).size < 50_000);
  assert.equal((await rig.usage('top')).inodes, 2);
  await rig.remove('top');
  await rig.cleanup();
  assert.throws(() => statSync(rig.folder.join('s/2')));
});
