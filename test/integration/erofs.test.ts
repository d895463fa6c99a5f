import assert from 'node:assert/strict';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';
import { compareTrees, walkTree } from '#test/harness/compare-trees.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { runTool } from '#test/images/tool.ts';
import { type FakeMember, fakeMember, fakeTar, fillImage, indexOfTar } from '#shared/layer/fake-layer.ts';
import { buildLayerImage } from '#shared/layer/layer-image.ts';

const SKIP = process.getuid?.() === 0 ? false : 'mounting and device nodes need root';

function noise(length: number, seed: number): Buffer {
  const bytes = Buffer.alloc(length);
  let state = seed;
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    bytes[i] = state >>> 16;
  }
  return bytes;
}

/** What stretches the writer: every kind of inode, directories of every size around a block, xattrs, odd names. */
function members(): FakeMember[] {
  const dir = (path: string, fields = {}) => fakeMember(path, 'directory', '', fields);
  const list = [
    dir(''),
    dir('sizes'),
    ...[0, 1, 4095, 4096, 4097, 123_457].map((size) => fakeMember(`sizes/${size}`, 'file', noise(size, size + 1))),
    dir('names'),
    fakeMember(`names/${'n'.repeat(255)}`, 'file', '255'),
    fakeMember(Buffer.from('names/\xff\xfe\x80', 'latin1'), 'file', 'bytes'),
    fakeMember('names/!before-the-dot', 'file', '!'),
    fakeMember('names/-dash', 'file', '-'),
    dir('symlinks'),
    ...[1, 100, 2000, 4000, 4095].map((size) =>
      fakeMember(`symlinks/${size}`, 'symlink', '', { linkName: 'l'.repeat(size) }),
    ),
    dir('devices'),
    fakeMember('devices/null', 'character', '', { deviceMajor: 1, deviceMinor: 3, mode: 0o666 }),
    fakeMember('devices/wide', 'block', '', { deviceMajor: 4095, deviceMinor: 1_048_575 }),
    fakeMember('devices/fifo', 'fifo', '', { mode: 0o600 }),
    dir('owners', { uid: 65_536, gid: 4_000_000_000 }),
    fakeMember('owners/setuid', 'file', 'x', { uid: 70_000, gid: 5, mode: 0o4755 }),
    fakeMember('owners/sticky', 'directory', '', { mode: 0o1777 }),
    dir('times'),
    fakeMember('times/nanoseconds', 'file', 't', { mtimeSeconds: 1, mtimeNanoseconds: 999_999_999 }),
    fakeMember('times/epoch', 'file', 't', { mtimeSeconds: 0 }),
    fakeMember('times/2200', 'file', 't', { mtimeSeconds: 7_258_118_400 }),
    fakeMember('links/a', 'file', 'linked'),
    fakeMember('links/deep/b', 'hardlink', '', { linkName: 'links/a' }),
    fakeMember('links/c', 'hardlink', '', { linkName: 'links/deep/b' }),
    // After what is in them, and parents last: so GNU tar's times of unpacking do not remain.
    dir('links/deep'),
    dir('links'),
    dir('xattrs', { xattrs: [[Buffer.from('user.on-dir'), Buffer.from('d')]] }),
    fakeMember('xattrs/binary', 'file', 'x', {
      xattrs: [
        [Buffer.from('user.binary'), Buffer.from([0, 255, 10, 61, 0])],
        [Buffer.from('user.empty'), Buffer.alloc(0)],
        [Buffer.from('security.capability'), Buffer.from('0100000200200000000000000000000000000000', 'hex')],
        [Buffer.from('user.odd'), noise(333, 9)],
      ],
    }),
    // A real ACL: user::rw-, user:1000:r--, group::r--, mask::r--, other::r--.
    fakeMember('xattrs/acl', 'file', 'x', {
      xattrs: [
        [
          Buffer.from('system.posix_acl_access'),
          Buffer.from(
            '0200000001000600ffffffff02000400e803000004000400ffffffff10000400ffffffff20000400ffffffff',
            'hex',
          ),
        ],
      ],
    }),
  ];
  for (const count of [0, 1, 60, 100, 145, 146, 147, 148, 292, 3000]) {
    list.push(dir(`dirs/${count}`));
    for (let i = 0; i < count; i++) list.push(fakeMember(`dirs/${count}/file-${String(i).padStart(8, '0')}`));
  }
  list.push(dir('dirs'));
  return list;
}

async function makeImage(tar: Buffer, path: string, signal: AbortSignal): Promise<void> {
  const image = buildLayerImage(indexOfTar(tar, 70_000));
  await writeFile(path, fillImage(image, tar));
  await runTool('fsck.erofs', [path], signal);
}

async function mount(image: string, folder: string, signal: AbortSignal): Promise<string> {
  await mkdir(folder);
  await runTool('mount', ['-t', 'erofs', '-o', 'ro', image, folder], signal);
  return folder;
}

/** Trees whose inodes end at all places of a block: names, symlinks and xattrs of any length. */
const trees = fc.array(
  fc.record({
    folder: fc.nat(3),
    type: fc.constantFrom('file', 'directory', 'symlink', 'fifo' as const),
    name: fc.integer({ min: 1, max: 240 }),
    link: fc.integer({ min: 1, max: 4095 }),
    xattr: fc.oneof(fc.constant(-1), fc.nat(5000)),
    copies: fc.nat(40),
    late: fc.boolean(),
  }),
  { minLength: 1, maxLength: 12 },
);

describe('the EROFS of a layer', { skip: SKIP, timeout: 60_000 }, () => {
  it('shows what tar unpacks, attribute by attribute', async ({ signal }) => {
    await using temp = await TempFolder.create();
    const tar = fakeTar(members());
    await writeFile(temp.join('tar'), tar);
    await mkdir(temp.join('unpacked'));
    const unpack = [
      '--xattrs',
      '--xattrs-include=*',
      '-p',
      '--same-owner',
      '--numeric-owner',
      '-C',
      temp.join('unpacked'),
    ];
    await runTool('tar', ['-xf', temp.join('tar'), ...unpack], signal);
    await makeImage(tar, temp.join('image'), signal);
    const mounted = await mount(temp.join('image'), temp.join('m'), signal);
    assert.deepEqual(await compareTrees(temp.join('unpacked'), mounted, signal), []);
  });

  it('shows what GNU tar packed, sparse files included, in each of its formats', async ({ signal }) => {
    await using temp = await TempFolder.create();
    const source = temp.join('source');
    const script = `
      mkdir -p "$1/sub" && cd "$1"
      truncate -s 3000000 holes all-hole
      for at in 0 300000 2999000; do echo "at $at" | dd of=holes bs=1 seek=$at conv=notrunc status=none; done
      printf tail > tail && truncate -s 500000 tail
      for i in $(seq 0 9 120); do printf x | dd of=many-runs bs=1 seek=$((i * 16384)) conv=notrunc status=none; done
      printf plain > "sub/$(printf 'p%.0s' $(seq 200))"
      ln sub/p* hard; ln -s "$(printf 't%.0s' $(seq 150))" soft
      find . -exec touch -h -d @1700000000 {} +`;
    await runTool('sh', ['-ec', script, 'sh', source], signal);
    const formats = [
      ['--format=gnu', '--sparse'],
      ['--format=posix', '--sparse', '--sparse-version=0.0'],
      ['--format=posix', '--sparse', '--sparse-version=0.1'],
      ['--format=posix', '--sparse', '--sparse-version=1.0'],
      ['--format=posix'],
    ];
    for (const [i, format] of formats.entries()) {
      const path = temp.join(`${i}.tar`);
      await runTool('tar', ['-cf', path, ...format, '-C', source, '.'], signal);
      await makeImage(await readFile(path), temp.join(`${i}.img`), signal);
      const mounted = await mount(temp.join(`${i}.img`), temp.join(`m${i}`), signal);
      const mtimeRounded = format[0] === '--format=gnu';
      assert.deepEqual(await compareTrees(source, mounted, signal, { mtimeRounded }), [], format.join(' '));
    }
  });

  it('gives overlayfs its whiteouts and opaque directories', async ({ signal }) => {
    await using temp = await TempFolder.create();
    const lower = fakeTar([
      fakeMember('gone', 'file', 'x'),
      fakeMember('d/old', 'file', 'x'),
      fakeMember('kept', 'file', 'k'),
    ]);
    const upper = fakeTar([fakeMember('.wh.gone'), fakeMember('d/.wh..wh..opq'), fakeMember('d/new', 'file', 'n')]);
    await makeImage(lower, temp.join('lower.img'), signal);
    await makeImage(upper, temp.join('upper.img'), signal);
    const bottom = await mount(temp.join('lower.img'), temp.join('l'), signal);
    const top = await mount(temp.join('upper.img'), temp.join('u'), signal);
    await mkdir(temp.join('merged'));
    const options = `lowerdir=${top}:${bottom}`;
    await runTool('mount', ['-t', 'overlay', '-o', options, 'overlay', temp.join('merged')], signal);
    assert.deepEqual([...(await walkTree(temp.join('merged'), signal)).keys()], ['.', 'd', 'd/new', 'kept']);
  });

  it('passes fsck.erofs whatever the lengths of names, symlinks and xattrs', async ({ signal }) => {
    await using temp = await TempFolder.create();
    await fc.assert(
      fc.asyncProperty(trees, async (tree) => {
        const list = tree.flatMap(({ folder, type, name, link, xattr, copies, late }, i) =>
          Array.from({ length: copies + 1 }, (_, copy) =>
            fakeMember(`${'d'.repeat(folder * 80 + 1)}/${i}.${copy}.${'n'.repeat(name)}`, type, '', {
              ...(type === 'symlink' ? { linkName: 'l'.repeat(link) } : {}),
              xattrs: xattr < 0 ? [] : [[Buffer.from('user.x'), Buffer.alloc(xattr, 1)]],
              mtimeSeconds: late ? copy : 7,
            }),
          ),
        );
        await makeImage(fakeTar(list), temp.join('image'), signal);
      }),
      { numRuns: Number(process.env['FUZZ_RUNS'] ?? 25) },
    );
  });
});
