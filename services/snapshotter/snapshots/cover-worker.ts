import { chownSync, chmodSync, lstatSync, mkdirSync, utimesSync, type Stats } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import koffi from 'koffi';

/**
 * Runs in a worker thread: every call here may wait for a file system that the main thread serves.
 *
 * Builds a *cover*: a tree of empty directories that lies above a layer in overlayfs's list. Under overlayfs the topmost
 * directory's attributes count, and a directory that the layer only implies has none of its own.
 */
export interface CoverTask {
  /** Empty folder to fill. */
  readonly cover: string;
  /** Root of the layer. */
  readonly layer: string;
  /** Roots of what is below it, topmost first. */
  readonly lowers: readonly string[];
  /** As ProvidedLayer.impliedDirectories, one string each in latin1: paths are bytes. */
  readonly implied: readonly string[];
}

/** `used`: false when no directory needed one. `conflict`: a path below the layer that is no directory there. */
export type CoverResult =
  | { readonly kind: 'built'; readonly used: boolean }
  | { readonly kind: 'conflict'; readonly path: string }
  | { readonly kind: 'failed'; readonly message: string };

const libc = koffi.load(null);
const listxattr = libc.func('intptr_t llistxattr(const void *path, void *list, size_t size)');
const getxattr = libc.func('intptr_t lgetxattr(const void *path, const void *name, void *value, size_t size)');
const setxattr = libc.func(
  'int lsetxattr(const void *path, const void *name, const void *value, size_t size, int flags)',
);
/** Linux's XATTR_SIZE_MAX and XATTR_LIST_MAX. */
const XATTR_BYTES = 65_536;
const OVERLAY = 'trusted.overlay.';

function terminated(path: Buffer): Buffer {
  return Buffer.concat([path, Buffer.of(0)]);
}

function xattrs(path: Buffer): [name: Buffer, value: Buffer][] {
  const list = Buffer.alloc(XATTR_BYTES);
  const bytes = Number(listxattr(terminated(path), list, list.length));
  const found: [Buffer, Buffer][] = [];
  for (let at = 0; at < bytes; ) {
    const end = list.indexOf(0, at);
    const name = list.subarray(at, end);
    const value = Buffer.alloc(XATTR_BYTES);
    const length = Number(getxattr(terminated(path), terminated(name), value, value.length));
    if (length >= 0) found.push([name, value.subarray(0, length)]);
    at = end + 1;
  }
  return found;
}

function isOpaque(path: Buffer): boolean {
  return xattrs(path).some(([name, value]) => name.toString() === `${OVERLAY}opaque` && value.toString() === 'y');
}

function statOf(path: Buffer): Stats | undefined {
  return lstatSync(path, { throwIfNoEntry: false });
}

function under(root: string, path: Buffer): Buffer {
  return path.length === 0 ? Buffer.from(root) : Buffer.concat([Buffer.from(`${root}/`), path]);
}

/** Where a directory's attributes are; as overlayfs merges. */
type Found =
  | { readonly kind: 'directory'; readonly path: Buffer }
  | { readonly kind: 'missing' }
  | { readonly kind: 'other' };

function mergedDirectory(lowers: readonly string[], path: Buffer): Found {
  let candidates = lowers;
  let first: string | undefined = lowers[0];
  for (let end = path.indexOf('/'); ; end = path.indexOf('/', end + 1)) {
    const prefix = end < 0 ? path : path.subarray(0, end);
    const next: string[] = [];
    for (const lower of candidates) {
      const here = under(lower, prefix);
      const stat = statOf(here);
      if (stat === undefined) continue;
      if (!stat.isDirectory()) {
        const isWhiteout = stat.isCharacterDevice() && stat.rdev === 0;
        if (next.length === 0 && !isWhiteout) return { kind: 'other' };
        break;
      }
      next.push(lower);
      if (isOpaque(here)) break;
    }
    if (next.length === 0) return { kind: 'missing' };
    candidates = next;
    first = next[0];
    if (end < 0) break;
  }
  return first === undefined ? { kind: 'missing' } : { kind: 'directory', path: under(first, path) };
}

function build(task: CoverTask): CoverResult {
  const implied = new Set(task.implied);
  /** Of every directory of the cover: whose attributes it has. */
  const sources = new Map<string, Buffer>();
  for (const text of task.implied) {
    const path = Buffer.from(text, 'latin1');
    if (path.length === 0) continue;
    if (hiddenByLayer(task.layer, path, implied)) continue;
    const found = mergedDirectory(task.lowers, path);
    if (found.kind === 'other') return { kind: 'conflict', path: path.toString('utf8') };
    if (found.kind === 'missing') continue;
    sources.set(text, found.path);
    for (let cut = text.lastIndexOf('/'); cut > 0; cut = text.lastIndexOf('/', cut - 1)) {
      const parent = text.slice(0, cut);
      if (!implied.has(parent) && !sources.has(parent)) {
        sources.set(parent, under(task.layer, Buffer.from(parent, 'latin1')));
      }
    }
  }
  if (sources.size === 0) return { kind: 'built', used: false };
  // The cover's root is what overlayfs then shows as the root.
  sources.set('', under(task.layer, Buffer.alloc(0)));
  const paths = [...sources.keys()].sort();
  for (const text of paths) mkdirSync(under(task.cover, Buffer.from(text, 'latin1')), { recursive: true });
  // Deepest first: making a directory changes the time of the one above.
  for (const text of paths.reverse()) {
    const source = sources.get(text);
    if (source !== undefined) copyAttributes(source, under(task.cover, Buffer.from(text, 'latin1')));
  }
  return { kind: 'built', used: true };
}

/** An ancestor that the layer itself makes anew (opaque) has nothing below it. */
function hiddenByLayer(layer: string, path: Buffer, implied: ReadonlySet<string>): boolean {
  for (let end = path.indexOf('/'); end >= 0; end = path.indexOf('/', end + 1)) {
    const parent = path.subarray(0, end);
    if (isOpaque(under(layer, parent)) && !implied.has(parent.toString('latin1'))) return true;
  }
  return false;
}

function copyAttributes(from: Buffer, to: Buffer): void {
  const stat = lstatSync(from);
  for (const [name, value] of xattrs(from)) {
    if (name.toString().startsWith(OVERLAY)) continue;
    if (Number(setxattr(terminated(to), terminated(name), value, value.length, 0)) !== 0) {
      throw new Error(`Cannot set ${name.toString()} on ${to.toString()}: errno ${koffi.errno()}`);
    }
  }
  chownSync(to, stat.uid, stat.gid);
  chmodSync(to, stat.mode & 0o7777);
  utimesSync(to, stat.atimeMs / 1000, stat.mtimeMs / 1000);
}

let result: CoverResult;
try {
  result = build(workerData as CoverTask);
} catch (error) {
  result = { kind: 'failed', message: error instanceof Error ? error.message : String(error) };
}
parentPort?.postMessage(result);
