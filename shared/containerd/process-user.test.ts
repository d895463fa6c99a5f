import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { resolveUser, snapshotFileReader } from './process-user.ts';

const FILES: Readonly<Record<string, string>> = {
  '/etc/passwd': 'root:x:0:0:root:/root:/bin/sh\nwww:x:33:44:www:/var/www:/bin/false\n',
  '/etc/group': 'root:x:0:\nstaff:x:50:www\n',
};
const read = (path: string): Promise<string | undefined> => Promise.resolve(FILES[path]);

for (const [text, uid, gid] of [
  ['', 0, 0],
  ['0', 0, 0],
  ['1234', 1234, 0],
  ['1234:5', 1234, 5],
  ['33', 33, 44],
  ['www', 33, 44],
  ['www:staff', 33, 50],
  ['www:7', 33, 7],
  ['5:staff', 5, 50],
] as const) {
  test(`user ${JSON.stringify(text)} is ${uid}:${gid}`, async () => {
    assert.deepEqual(await resolveUser(text, read), { uid, gid, additionalGids: [gid] });
  });
}

test('A user or group that the image does not know is named in the error', async () => {
  await assert.rejects(resolveUser('nobody', read), /"nobody".*\/etc\/passwd/);
  await assert.rejects(resolveUser('www:nogroup', read), /"nogroup".*\/etc\/group/);
  await assert.rejects(resolveUser('99999999999', read), /99999999999/);
});

test('root by number needs no file of the image', async () => {
  await resolveUser('0:0', () => Promise.reject(new Error('must not be read')));
  await resolveUser('', () => Promise.reject(new Error('must not be read')));
});

test('Files are read through the mounts, the top layer first', async (context) => {
  const folder = mkdtempSync(join(tmpdir(), 'kindling-user-'));
  context.after(() => rmSync(folder, { recursive: true }));
  for (const [layer, name, content] of [
    ['upper', 'b', 'of upper'],
    ['top', 'a', 'of top'],
    ['bottom', 'a', 'of bottom'],
    ['bottom', 'b', 'of bottom'],
  ] as const) {
    mkdirSync(join(folder, layer), { recursive: true });
    writeFileSync(join(folder, layer, name), content);
  }
  const options = [
    'index=off',
    `upperdir=${folder}/upper`,
    `lowerdir=${folder}/top:${folder}/bottom`,
    `workdir=${folder}/work`,
  ];
  const overlay = snapshotFileReader([{ type: 'overlay', source: 'overlay', target: '', options }], context.signal);
  assert.deepEqual([await overlay('/a'), await overlay('/b'), await overlay('/c')], ['of top', 'of upper', undefined]);
  const bind = snapshotFileReader(
    [{ type: 'bind', source: `${folder}/bottom`, target: '', options: ['rbind', 'rw'] }],
    context.signal,
  );
  assert.equal(await bind('/a'), 'of bottom');
});
