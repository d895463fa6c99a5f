import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { buildCover } from './cover.ts';
import type { CoverResult } from './cover-worker.ts';

const skip = process.getuid?.() === 0 ? false : 'owners, devices and trusted xattrs need root';

interface Setup {
  readonly layer: string;
  readonly lowers: readonly string[];
  readonly cover: string;
}

function setUp(context: TestContext, lowers: number): Setup {
  const folder = mkdtempSync(join(tmpdir(), 'kindling-cover-'));
  context.after(() => rmSync(folder, { recursive: true }));
  const make = (name: string): string => {
    mkdirSync(join(folder, name));
    return join(folder, name);
  };
  return {
    layer: make('layer'),
    cover: make('cover'),
    lowers: Array.from({ length: lowers }, (_, i) => make(`lower-${i}`)),
  };
}

function folder(root: string | undefined, path: string, mode = 0o755, uid = 0): void {
  const full = join(root ?? '', path);
  mkdirSync(full, { recursive: true });
  chmodSync(full, mode);
  chownSync(full, uid, uid);
}

async function cover(setup: Setup, implied: readonly string[], signal: AbortSignal): Promise<CoverResult> {
  return await buildCover({ ...setup, implied }, signal);
}

test('Implied directories get the attributes of the topmost layer below, their ancestors those of the layer', {
  skip,
}, async (context) => {
  const setup = setUp(context, 2);
  folder(setup.layer, 'a', 0o711, 1);
  folder(setup.layer, 'a/b/c');
  folder(setup.lowers[1], 'a', 0o700, 9);
  folder(setup.lowers[1], 'a/b', 0o750, 2);
  folder(setup.lowers[1], 'a/b/c', 0o2770, 3);
  folder(setup.lowers[0], 'a/b', 0o705, 4);
  utimesSync(join(setup.lowers[0] ?? '', 'a/b'), 1000, 1000);
  assert.deepEqual(await cover(setup, ['a/b', 'a/b/c', 'new'], context.signal), { kind: 'built', used: true });
  const seen = ['a', 'a/b', 'a/b/c'].map((path) => {
    const stat = statSync(join(setup.cover, path));
    return [stat.mode & 0o7777, stat.uid];
  });
  assert.deepEqual(seen, [
    [0o711, 1],
    [0o705, 4],
    [0o2770, 3],
  ]);
  assert.equal(statSync(join(setup.cover, 'a/b')).mtimeMs, 1_000_000);
  assert.deepEqual(readdirSync(setup.cover), ['a'], 'what nothing below has needs no cover');
});

test('A path that is no directory below is a conflict, with its name', { skip }, async (context) => {
  const setup = setUp(context, 1);
  symlinkSync('usr/lib', join(setup.lowers[0] ?? '', 'lib'));
  assert.deepEqual(await cover(setup, ['lib'], context.signal), { kind: 'conflict', path: 'lib' });
});

test('What a whiteout or an opaque directory hides has no attributes to give', { skip }, async (context) => {
  const setup = setUp(context, 2);
  folder(setup.lowers[1], 'a/b', 0o700);
  folder(setup.lowers[1], 'c/d', 0o700);
  execFileSync('mknod', [join(setup.lowers[0] ?? '', 'a'), 'c', '0', '0']);
  folder(setup.lowers[0], 'c');
  execFileSync('setfattr', ['-n', 'trusted.overlay.opaque', '-v', 'y', join(setup.lowers[0] ?? '', 'c')]);
  folder(setup.layer, 'a/b');
  folder(setup.layer, 'c/d');
  assert.deepEqual(await cover(setup, ['a', 'a/b', 'c/d'], context.signal), { kind: 'built', used: false });
  assert.deepEqual(readdirSync(setup.cover), []);
});

test('Extended attributes are copied, those of overlayfs are not', { skip }, async (context) => {
  const setup = setUp(context, 1);
  folder(setup.lowers[0], 'a');
  for (const name of ['trusted.overlay.opaque', 'trusted.mine', 'security.kindling']) {
    execFileSync('setfattr', ['-n', name, '-v', 'y', join(setup.lowers[0] ?? '', 'a')]);
  }
  folder(setup.layer, 'a');
  assert.deepEqual(await cover(setup, ['a'], context.signal), { kind: 'built', used: true });
  const dump = execFileSync('getfattr', ['-d', '-m', '-', join(setup.cover, 'a')], { encoding: 'utf8' });
  assert.ok(dump.includes('trusted.mine="y"') && dump.includes('security.kindling="y"'), dump);
  assert.ok(!dump.includes('overlay'), dump);
});

test('A cover that cannot be built says why', async (context) => {
  const result = await buildCover(
    { cover: '/dev/null/cover', layer: tmpdir(), lowers: ['/'], implied: ['etc'] },
    context.signal,
  );
  assert.equal(result.kind, 'failed');
});
