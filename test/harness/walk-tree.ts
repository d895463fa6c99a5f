/**
 * `node walk-tree.ts ROOT`: writes one JSON line per path of a tree, sorted by path. Runs as a process of its own, because the
 * tree may be on a file system that the test's process takes part in serving. Names and values are Latin-1 of their bytes.
 */
import { createHash } from 'node:crypto';
import {
  closeSync,
  lstatSync,
  openSync,
  readSync,
  readdirSync,
  readlinkSync,
  writeSync,
  type BigIntStats,
} from 'node:fs';
import koffi from 'koffi';

export interface TreeEntry {
  readonly path: string;
  readonly type: 'file' | 'directory' | 'symlink' | 'char' | 'block' | 'fifo' | 'socket';
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtimeNs: string;
  /** Of files and symlinks: what a directory or a device says differs between file systems. */
  readonly size?: number;
  readonly rdev?: number;
  readonly target?: string;
  /** First path with the same inode, for what has several links. */
  readonly linkOf?: string;
  readonly xattrs?: Readonly<Record<string, string>>;
  readonly sha256?: string;
}

const libc = koffi.load('libc.so.6');
const llistxattr = libc.func('intptr_t llistxattr(const void *path, void *list, size_t size)');
const lgetxattr = libc.func('intptr_t lgetxattr(const void *path, const void *name, void *value, size_t size)');
const scratch = Buffer.alloc(65_536);
const names = Buffer.alloc(65_536);
const block = Buffer.alloc(1 << 20);
const NUL = Buffer.alloc(1);

function xattrsOf(path: Buffer): Record<string, string> | undefined {
  const zero = Buffer.concat([path, NUL]);
  const length = Number(llistxattr(zero, names, names.length));
  if (length <= 0) return undefined;
  const found: [string, string][] = [];
  for (const name of names.toString('latin1', 0, length).split('\0')) {
    if (name === '') continue;
    const size = Number(lgetxattr(zero, Buffer.from(`${name}\0`, 'latin1'), scratch, scratch.length));
    if (size < 0) throw new Error(`Cannot read xattr ${name} of ${path.toString('latin1')}`);
    found.push([name, scratch.toString('latin1', 0, size)]);
  }
  return Object.fromEntries(found.sort(([a], [b]) => (a < b ? -1 : 1)));
}

function hashOf(path: Buffer): string {
  const hash = createHash('sha256');
  const fd = openSync(path, 'r');
  try {
    for (let read = readSync(fd, block); read > 0; read = readSync(fd, block)) hash.update(block.subarray(0, read));
  } finally {
    closeSync(fd);
  }
  return hash.digest('hex');
}

function typeOf(stats: BigIntStats): TreeEntry['type'] {
  if (stats.isFile()) return 'file';
  if (stats.isDirectory()) return 'directory';
  if (stats.isSymbolicLink()) return 'symlink';
  if (stats.isCharacterDevice()) return 'char';
  if (stats.isBlockDevice()) return 'block';
  return stats.isFIFO() ? 'fifo' : 'socket';
}

const firstPaths = new Map<string, string>();
const lines: string[] = [];

function emit(full: Buffer, path: string): void {
  const stats = lstatSync(full, { bigint: true });
  const type = typeOf(stats);
  const xattrs = xattrsOf(full);
  let linkOf: string | undefined;
  if (type !== 'directory' && stats.nlink > 1n) {
    const inode = `${stats.dev}:${stats.ino}`;
    linkOf = firstPaths.get(inode);
    if (linkOf === undefined) firstPaths.set(inode, path);
  }
  const entry: TreeEntry = {
    path,
    type,
    mode: Number(stats.mode & 0o7777n),
    uid: Number(stats.uid),
    gid: Number(stats.gid),
    mtimeNs: String(stats.mtimeNs),
    ...(type === 'file' || type === 'symlink' ? { size: Number(stats.size) } : {}),
    ...(type === 'char' || type === 'block' ? { rdev: Number(stats.rdev) } : {}),
    ...(type === 'symlink' ? { target: readlinkSync(full, { encoding: 'buffer' }).toString('latin1') } : {}),
    ...(linkOf === undefined ? {} : { linkOf }),
    ...(xattrs === undefined ? {} : { xattrs }),
    ...(type === 'file' && linkOf === undefined ? { sha256: hashOf(full) } : {}),
  };
  lines.push(JSON.stringify(entry));
  if (lines.length >= 1000) flush();
  if (type !== 'directory') return;
  const children = readdirSync(full, { encoding: 'buffer' }).sort(Buffer.compare);
  for (const child of children) {
    const name = child.toString('latin1');
    emit(Buffer.concat([full, Buffer.from('/'), child]), path === '.' ? name : `${path}/${name}`);
  }
}

function flush(): void {
  const bytes = Buffer.from(lines.map((line) => `${line}\n`).join(''));
  lines.length = 0;
  for (let written = 0; written < bytes.length; ) written += writeSync(1, bytes, written);
}

const root = process.argv[2];
if (root === undefined) throw new Error('usage: node walk-tree.ts ROOT');
emit(Buffer.from(root), '.');
flush();
