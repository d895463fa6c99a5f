import { mkdir, rm, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { sha256 } from '#shared/digest/digest.ts';
import type { LayerEntry } from '#shared/layer/layer-index.ts';
import { tarHeader } from '#shared/tar/tar-writer.ts';
import { compressLayer, type Compression } from './compression.ts';
import { writeOciLayout, type LayerFile, type OciLayout } from './oci-layout.ts';

/** Change of 2024-01-02T03:04:05Z, with a fraction that a TOC of whole seconds would lose only where it must. */
const MTIME = 1_704_164_645;

type Fields = Partial<Omit<LayerEntry, 'path' | 'type' | 'extents' | 'size'>>;
interface TarMember {
  readonly entry: LayerEntry;
  readonly content: Buffer;
}

function member(
  path: string | Buffer,
  type: LayerEntry['type'],
  fields: Fields = {},
  content: Buffer = Buffer.alloc(0),
): TarMember {
  const entry: LayerEntry = {
    path: typeof path === 'string' ? Buffer.from(path) : path,
    type,
    mode: type === 'directory' ? 0o755 : 0o644,
    uid: 0,
    gid: 0,
    mtimeSeconds: MTIME,
    mtimeNanoseconds: 0,
    size: content.length,
    linkName: Buffer.alloc(0),
    deviceMajor: 0,
    deviceMinor: 0,
    xattrs: [],
    extents: content.length === 0 ? [] : [{ fileOffset: 0, streamOffset: 0, length: content.length }],
    ...fields,
  };
  return { entry, content };
}

const dir = (path: string | Buffer, fields: Fields = {}): TarMember => member(path, 'directory', fields);
const file = (path: string | Buffer, content: string | Buffer, fields: Fields = {}): TarMember =>
  member(path, 'file', fields, typeof content === 'string' ? Buffer.from(content) : content);
/** With the owner of its target, as archivers write it: containerd gives the inode what the last of its names says. */
const link = (path: string, target: string): TarMember =>
  member(path, 'hardlink', { linkName: Buffer.from(target), uid: 1, gid: 2 });
const symlink = (path: string, target: string): TarMember =>
  member(path, 'symlink', { linkName: Buffer.from(target), mode: 0o777 });

/** Bytes that do not compress to nothing and differ from file to file. */
function noise(length: number, seed: number): Buffer {
  const bytes = Buffer.alloc(length);
  let state = seed;
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    bytes[i] = (state >>> 16) & (i % 97 < 48 ? 0xff : 0x0f);
  }
  return bytes;
}

/** `cap_net_raw+ep` as the kernel stores it: binary, with zero bytes. */
const CAPABILITY = Buffer.from('0100000200200000000000000000000000000000', 'hex');

function lowerLayer(): TarMember[] {
  return [
    dir(''),
    dir('etc', { mode: 0o750, uid: 10, gid: 20 }),
    file('etc/lower.conf', 'lower\n', { mode: 0o640, uid: 10, gid: 20 }),
    dir('var'),
    dir('var/lib', { mode: 0o711, uid: 7, xattrs: [[Buffer.from('user.dir'), Buffer.from('of the lower layer')]] }),
    dir('var/lib/data', { mode: 0o2770, gid: 50 }),
    file('var/lib/data/old', 'old'),
    file('var/lib/data/gone', 'gone'),
    dir('var/lib/data/gone-too'),
    file('var/lib/data/gone-too/inner', 'gone'),
    dir('opaque', { mode: 0o700 }),
    file('opaque/a', 'a'),
    dir('opaque/sub'),
    file('opaque/sub/b', 'b'),
    dir('becomes-file'),
    file('becomes-file/x', 'x'),
    file('becomes-dir', 'a file'),
    file('becomes-link', 'a file'),
    file('changed', noise(10_000, 1)),
  ];
}

function upperLayer(): TarMember[] {
  const long = 'n'.repeat(255);
  return [
    dir(''),
    // Without entries for var, var/lib and var/lib/data: overlayfs must show the lower layer's attributes.
    file('var/lib/data/new', 'new'),
    file('var/lib/data/.wh.gone', ''),
    file('var/lib/data/.wh.gone-too', ''),
    file('missing/parents/of/a/file', 'implied'),
    dir('opaque', { mode: 0o701 }),
    file('opaque/.wh..wh..opq', ''),
    file('opaque/c', 'c'),
    file('becomes-file', 'now a file'),
    dir('becomes-dir'),
    file('becomes-dir/child', 'now a directory'),
    symlink('becomes-link', 'changed'),
    file('changed', noise(20_001, 2)),
    file('twice', 'first, and longer than the second'),
    file('twice', 'second', { mode: 0o600 }),
    dir('dev'),
    member('dev/null', 'character', { mode: 0o666, deviceMajor: 1, deviceMinor: 3 }),
    member('dev/disk', 'block', { mode: 0o660, gid: 6, deviceMajor: 8, deviceMinor: 17 }),
    member('dev/wide', 'character', { mode: 0o600, deviceMajor: 300, deviceMinor: 70_000 }),
    member('dev/pipe', 'fifo', { mode: 0o622 }),
    dir('links'),
    dir('links/elsewhere'),
    file('links/one', noise(5_000, 3), { uid: 1, gid: 2 }),
    link('links/elsewhere/two', 'links/one'),
    link('links/three', 'links/elsewhere/two'),
    symlink('links/dangling', '/no/such/file'),
    symlink('links/self', 'self'),
    symlink('links/long', `/${'d/'.repeat(1_500)}end`),
    dir('names'),
    file(`names/${'h'.repeat(100)}`, '100'),
    file(`names/${long}`, '255'),
    dir(`names/${'p'.repeat(200)}`),
    file(`names/${'p'.repeat(200)}/${'q'.repeat(200)}`, 'more than a ustar header holds'),
    file('names/é-日本-🔥', 'UTF-8'),
    file('names/with space\tand\nnewline "quoted" \\', 'odd'),
    dir('xattrs', { xattrs: [[Buffer.from('user.on-a-dir'), Buffer.from('yes')]] }),
    file('xattrs/capability', 'x', {
      mode: 0o755,
      xattrs: [[Buffer.from('security.capability'), CAPABILITY]],
    }),
    file('xattrs/binary', 'x', {
      xattrs: [
        [Buffer.from('user.binary'), Buffer.from([0, 1, 255, 254, 0, 10, 61])],
        [Buffer.from('user.empty'), Buffer.alloc(0)],
        [Buffer.from('user.large'), noise(1_500, 4)],
        [Buffer.from('trusted.kindling'), Buffer.from('for root')],
      ],
    }),
    dir('modes', { mode: 0o1777 }),
    file('modes/setuid', 'u', { mode: 0o4755 }),
    file('modes/setgid', 'g', { mode: 0o2755, uid: 1_234_567, gid: 7_654_321 }),
    file('modes/none', 'n', { mode: 0 }),
    dir('modes/closed', { mode: 0 }),
    dir('sizes'),
    ...[0, 1, 4_095, 4_096, 4_097, 65_536, 1_048_577].map((size) => file(`sizes/${size}`, noise(size, size + 5))),
    file('sizes/zeros', Buffer.alloc(300_000)),
    file('sizes/large', noise(9_000_001, 6)),
    dir('times'),
    file('times/fraction', 't', { mtimeNanoseconds: 123_456_789 }),
    file('times/before-1970', 't', { mtimeSeconds: -86_400 }),
    file('times/after-2106', 't', { mtimeSeconds: 2 ** 33 }),
    dir('empty'),
    dir('many'),
    ...Array.from({ length: 1_500 }, (_, i) =>
      file(`many/file-${String(i).padStart(5, '0')}-${'x'.repeat(i % 40)}`, `${i}`),
    ),
  ];
}

/** Whiteouts of what the upper layer brought, and a name that no TOC can hold: converters must leave this layer as it is. */
function lastLayer(): TarMember[] {
  return [
    file('.wh.empty', ''),
    file('links/elsewhere/.wh.two', ''),
    file('sizes/.wh.1', ''),
    file(Buffer.concat([Buffer.from('names/'), Buffer.from([0xff, 0xfe, 0x80, 0x41])]), 'not UTF-8'),
  ];
}

/**
 * Directories whose modification time is no property of the image: layers only imply them or change what is in them, and an
 * unpacking program stamps them with the time of unpacking.
 */
const UNSTABLE = new Set([
  '.',
  'var',
  'var/lib',
  'var/lib/data',
  'missing',
  'missing/parents',
  'missing/parents/of',
  'missing/parents/of/a',
  'links/elsewhere',
  'links',
  'sizes',
  'names',
]);

export function hasUnstableMtime(path: string): boolean {
  return UNSTABLE.has(path);
}

/** An image of three small layers with everything that is awkward in a layer. It has no program: it is compared, not run. */
export async function writeAwkwardImage(
  folder: string,
  compression: Compression,
  signal: AbortSignal,
): Promise<OciLayout> {
  await mkdir(dirname(folder), { recursive: true });
  const layers: LayerFile[] = [];
  for (const [i, members] of [lowerLayer(), upperLayer(), lastLayer()].entries()) {
    const tar = tarOf(members);
    const path = `${folder}.${i}.tar`;
    await writeFile(path, tar);
    layers.push(
      await compressLayer({ path, diffId: sha256(tar) }, `${folder}.${i}.blob`, compression, `awkward ${i}`, signal),
    );
    await rm(path);
  }
  return await writeOciLayout(folder, layers, { command: ['/nothing'] });
}

function tarOf(members: readonly TarMember[]): Buffer {
  const parts: Buffer[] = [];
  for (const { entry, content } of members) {
    parts.push(tarHeader(entry), content, Buffer.alloc((512 - (content.length % 512)) % 512));
  }
  return Buffer.concat([...parts, Buffer.alloc(1024)]);
}
