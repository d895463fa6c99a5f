import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseMountTable } from './mount-table.ts';
import { sessionUseIn } from './session-users.ts';

const FUSE = '31 1 0:52 / /d/fuse rw - fuse.kindling kindling rw';
const SESSION = '32 1 0:60 / /d/m/aaaa ro - erofs /d/fuse/aaaa.img ro';
const DISK = '40 32 0:70 / /d/m/aaaa ro - erofs /d/layers/aaaa/image ro';
const OTHER = '33 1 0:61 / /d/m/bbbb ro - erofs /d/layers/bbbb/image ro';

function overlay(target: string, lower: string): string {
  return `50 1 0:80 / ${target} rw - overlay overlay rw,lowerdir=${lower},upperdir=/d/s/1/fs,workdir=/d/s/1/work`;
}

function usersOf(...lines: readonly string[]): [target: string, images: readonly string[]][] {
  const table = parseMountTable(`${lines.join('\n')}\n`);
  return sessionUseIn(table, ({ source }) => source, '/d/fuse').users.map(({ mount, images }) => [
    mount.target,
    images,
  ]);
}

test('a container that started before its layers were complete needs the session for as long as it lives', () => {
  const users = usersOf(FUSE, SESSION, OTHER, overlay('/c/early', '/d/m/aaaa:/d/m/bbbb'), DISK);
  assert.deepEqual(users, [['/c/early', ['/d/fuse/aaaa.img']]]);
});

test('one that started later does not, although the layer is mounted from the session below', () => {
  assert.deepEqual(usersOf(FUSE, SESSION, OTHER, DISK, overlay('/c/late', '/d/m/aaaa:/d/m/bbbb')), []);
});

test('layers may be named relative to a folder above them, and one by one', () => {
  assert.deepEqual(usersOf(FUSE, SESSION, overlay('/c/x', 'aaaa')), [['/c/x', ['/d/fuse/aaaa.img']]]);
  const single = '50 1 0:80 / /c/y rw - overlay overlay rw,lowerdir+=/d/m/bbbb,lowerdir+=/d/m/aaaa';
  assert.deepEqual(usersOf(FUSE, SESSION, OTHER, single), [['/c/y', ['/d/fuse/aaaa.img']]]);
});

test('a copy of a layer mount elsewhere is a user, the layer mount itself is none', () => {
  const copy = '60 1 0:60 / /c/view ro - erofs /d/fuse/aaaa.img ro';
  assert.deepEqual(usersOf(FUSE, SESSION), []);
  assert.deepEqual(usersOf(FUSE, SESSION, copy), [['/c/view', ['/d/fuse/aaaa.img']]]);
});
