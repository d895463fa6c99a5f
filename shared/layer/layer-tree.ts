import { LAYER_LIMITS, type LayerEntry, LayerError } from './layer-index.ts';
import { isDirectory, type LayerDirectory, LayerInode } from './layer-inode.ts';

export interface LayerTree {
  readonly root: LayerDirectory;
  /** Paths of directories without an entry of their own, the root left out, parents before children. */
  readonly impliedDirectories: readonly Buffer[];
}

const WHITEOUT = '.wh.';
const META = '.wh..wh.';
const OPAQUE = '.wh..wh..opq';
/** AUFS keeps targets of hard links here; the folder itself is never shown. */
const AUFS_LINKS = '.wh..wh.plnk/';
const HIDDEN_AT_ROOT = new Set(['.prefetch.landmark', '.no.prefetch.landmark', 'stargz.index.json']);
/** As Linux: symlinks followed in one path. */
const MAX_SYMLINKS = 40;
/** Parts walked behind symlinks, in the whole layer: what real layers need, not what an attacker would like to burn. */
const MAX_SYMLINK_STEPS = 10_000_000;
/** Bytes of the paths of implied directories: a thousand times what real layers have. */
const MAX_IMPLIED_BYTES = 64 * 1024 * 1024;

/**
 * The tree of a layer as containerd's overlayfs unpack would leave it in the upper directory: the last entry of a path counts,
 * a directory over a directory keeps its children, whiteouts become character devices 0:0, `.wh..wh..opq` marks its
 * directory opaque, other `.wh..wh.` names and eStargz's own files at the root are hidden. Parents of a path that are symlinks of
 * this layer are followed, inside the layer. A hard link takes its attributes from its target.
 *
 * @throws LayerError `malformed` (hard link without target, path below a file), `escapes`, `too-large`.
 */
export function buildLayerTree(entries: readonly LayerEntry[]): LayerTree {
  if (entries.length > LAYER_LIMITS.entries) {
    throw new LayerError(
      'too-large',
      `Cannot take a layer of ${entries.length} entries: ${LAYER_LIMITS.entries} at most`,
    );
  }
  const builder = new TreeBuilder();
  for (let i = 0; i < entries.length; i++) {
    const entry = entries[i];
    if (entry !== undefined) builder.add(entry, i);
  }
  return { root: builder.root, impliedDirectories: impliedDirectories(builder.root) };
}

class TreeBuilder {
  readonly root = new LayerInode('directory', undefined, -1) as LayerDirectory;
  readonly #aufsLinks = new Map<string, LayerInode>();
  /** Entries come grouped by directory: the last parent found. */
  #lastParentPath = '';
  #lastParent: LayerDirectory = this.root;
  #inodes = 1;
  #symlinkSteps = 0;

  add(entry: LayerEntry, number: number): void {
    if (entry.path.length > LAYER_LIMITS.pathBytes) throw tooLong(entry.path.toString('latin1'));
    const path = entry.path.toString('latin1');
    if (path === '') {
      if (entry.type !== 'directory') throw malformed(path, `the root of the layer is a ${entry.type}`);
      this.root.entry = entry;
      return;
    }
    if (path.startsWith(META) && path !== OPAQUE) {
      if (path.startsWith(AUFS_LINKS) && entry.type === 'file') {
        this.#aufsLinks.set(path, new LayerInode('file', entry, number));
      }
      return;
    }
    const slash = path.lastIndexOf('/');
    const name = slash < 0 ? path : path.slice(slash + 1);
    checkName(name, path);
    if (slash < 0 && HIDDEN_AT_ROOT.has(name)) return;
    const parent = slash < 0 ? this.root : this.#parent(path.slice(0, slash));
    if (name.startsWith(WHITEOUT)) this.#whiteout(parent, name);
    else if (entry.type === 'hardlink') this.#hardLink(parent, name, entry, path);
    else this.#put(parent, name, entry, number);
  }

  #put(parent: LayerDirectory, name: string, entry: LayerEntry, number: number): void {
    const { type } = entry;
    if (type === 'hardlink') return;
    const existing = parent.children.get(name);
    if (type === 'directory' && isDirectory(existing)) {
      const before = existing.entry?.xattrs ?? [];
      // Unpacking sets the xattrs of the later entry beside those of the earlier one.
      const kept = before.filter(([key]) => !entry.xattrs.some(([other]) => other.equals(key)));
      existing.entry = kept.length === 0 ? entry : { ...entry, xattrs: [...kept, ...entry.xattrs] };
      return;
    }
    this.#replace(parent, name, existing, new LayerInode(type, entry, type === 'file' ? number : -1));
  }

  #hardLink(parent: LayerDirectory, name: string, entry: LayerEntry, path: string): void {
    const targetPath = entry.linkName.toString('latin1');
    const target = this.#find(targetPath) ?? this.#aufsLinks.get(targetPath);
    if (target === undefined || target.whiteout) {
      throw malformed(path, `it is a hard link to ${shown(targetPath)}, which this layer does not have before it`);
    }
    if (isDirectory(target)) throw malformed(path, `it is a hard link to the directory ${shown(targetPath)}`);
    const existing = parent.children.get(name);
    if (existing !== target) this.#replace(parent, name, existing, target);
  }

  #whiteout(parent: LayerDirectory, name: string): void {
    if (name === OPAQUE) {
      parent.opaque = true;
      return;
    }
    const hidden = name.slice(WHITEOUT.length);
    if (name.startsWith(META) || hidden === '' || hidden === '.' || hidden === '..') return;
    // A whiteout hides what lower layers have, never what its own layer puts there.
    if (parent.children.has(hidden)) return;
    this.#replace(parent, hidden, undefined, new LayerInode('character', undefined, -1, true));
  }

  #replace(parent: LayerDirectory, name: string, existing: LayerInode | undefined, inode: LayerInode): void {
    if (existing !== undefined) {
      drop(existing);
      if (isDirectory(existing)) {
        parent.links--;
        this.#lastParentPath = '';
        this.#lastParent = this.root;
      }
      // A parent found through a symlink may not be remembered past the symlink.
      if (existing.type === 'symlink') {
        this.#lastParentPath = '';
        this.#lastParent = this.root;
      }
      // The new name comes last, as it does where the old one was removed.
      parent.children.delete(name);
    }
    parent.children.set(name, inode);
    if (++this.#inodes > LAYER_LIMITS.entries) {
      throw new LayerError('too-large', `Cannot take a layer of more than ${LAYER_LIMITS.entries} names`);
    }
    if (isDirectory(inode)) parent.links++;
    else inode.links++;
  }

  /** The directory at `path`, made where it is missing. */
  #parent(path: string): LayerDirectory {
    if (path === this.#lastParentPath) return this.#lastParent;
    const directory = this.#walk(path, true);
    if (!isDirectory(directory)) throw malformed(path, 'it is not a directory, and a later entry lies below it');
    this.#lastParentPath = path;
    this.#lastParent = directory;
    return directory;
  }

  /** The inode at `path`: parents that are symlinks are followed, the last part is not. */
  #find(path: string): LayerInode | undefined {
    const slash = path.lastIndexOf('/');
    const parent = slash < 0 ? this.root : this.#walk(path.slice(0, slash), false);
    return isDirectory(parent) ? (path === '' ? parent : parent.children.get(path.slice(slash + 1))) : undefined;
  }

  #walk(path: string, create: boolean): LayerInode | undefined {
    const parts = path.split('/').reverse();
    const trail: LayerDirectory[] = [this.root];
    let symlinks = 0;
    for (let part = parts.pop(); part !== undefined; part = parts.pop()) {
      const directory = trail.at(-1) ?? this.root;
      if (symlinks > 0) {
        if (++this.#symlinkSteps > MAX_SYMLINK_STEPS) {
          throw new LayerError('too-large', `Cannot take the path ${shown(path)}: the layer's symlinks are a maze`);
        }
        if (part === '' || part === '.') continue;
        if (part === '..') {
          if (trail.length > 1) trail.pop();
          continue;
        }
      }
      let child = directory.children.get(part);
      if (child?.type === 'symlink') {
        if (++symlinks > MAX_SYMLINKS) throw malformed(path, `more than ${MAX_SYMLINKS} symlinks lead there`);
        const target = child.entry?.linkName.toString('latin1') ?? '';
        if (target.length > LAYER_LIMITS.pathBytes) throw tooLong(target);
        if (target.startsWith('/')) trail.length = 1;
        parts.push(...target.split('/').reverse());
        continue;
      }
      if (child === undefined || child.whiteout) {
        if (!create) return undefined;
        checkName(part, path);
        const implied = new LayerInode('directory', undefined, -1);
        // What a whiteout hides in lower layers stays hidden below the directory in its place.
        implied.opaque = child?.whiteout ?? false;
        this.#replace(directory, part, child, implied);
        child = implied;
      }
      if (!isDirectory(child)) return create || parts.length > 0 ? undefined : child;
      trail.push(child);
      if (trail.length > LAYER_LIMITS.depth) {
        throw new LayerError('too-large', `Cannot take the path ${shown(path)}: more than ${LAYER_LIMITS.depth} deep`);
      }
    }
    return trail.at(-1);
  }
}

/** Takes a name from an inode, and from all below it. */
function drop(inode: LayerInode): void {
  if (!isDirectory(inode)) {
    inode.links--;
    return;
  }
  for (const child of inode.children.values()) drop(child);
}

function impliedDirectories(root: LayerDirectory): Buffer[] {
  const found: Buffer[] = [];
  let bytes = 0;
  const visit = (directory: LayerDirectory, prefix: string): void => {
    for (const [name, child] of directory.children) {
      if (!isDirectory(child)) continue;
      const path = prefix === '' ? name : `${prefix}/${name}`;
      if (child.implied) {
        bytes += path.length;
        if (bytes > MAX_IMPLIED_BYTES)
          throw new LayerError('too-large', 'Cannot take a layer of so many bare directories');
        found.push(Buffer.from(path, 'latin1'));
      }
      visit(child, path);
    }
  };
  visit(root, '');
  return found;
}

function checkName(name: string, path: string): void {
  if (name === '' || name === '.') throw malformed(path, 'it has an empty or "." part');
  if (name === '..') throw new LayerError('escapes', `Cannot take the path ${shown(path)}: it has a ".." part`);
  if (name.includes('\0')) throw malformed(path, 'it has a NUL');
  if (name.length > LAYER_LIMITS.nameBytes) {
    throw new LayerError('too-large', `Cannot take the path ${shown(path)}: a part of ${name.length} bytes`);
  }
}

function malformed(path: string, why: string): LayerError {
  return new LayerError('malformed', `Cannot build the tree at ${shown(path)}: ${why}`);
}

function tooLong(path: string): LayerError {
  return new LayerError('too-large', `Cannot take a path of ${path.length} bytes: ${shown(path)}`);
}

function shown(path: string): string {
  return JSON.stringify(Buffer.from(path.slice(0, 200), 'latin1').toString('utf8'));
}
