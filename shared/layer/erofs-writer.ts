import { encodeXattrs, xattrCount } from './erofs-xattrs.ts';
import { approximateTime, attributesOf, type InodeAttributes } from './inode-attributes.ts';
import { LAYER_LIMITS, LayerError } from './layer-index.ts';
import { isDirectory, type InodeType, type LayerDirectory, type LayerInode } from './layer-inode.ts';

export const EROFS_BLOCK_BYTES = 4096;
const BLOCK = EROFS_BLOCK_BYTES;

const SUPERBLOCK_OFFSET = 1024;
const SUPERBLOCK_BYTES = 128;
const MAGIC = 0xe0f5e1e2;
const FEATURE_COMPAT_MTIME = 2;
const COMPACT_BYTES = 32;
const EXTENDED_BYTES = 64;
const SLOT_BYTES = 32;
const DIRENT_BYTES = 12;
/** Bits 1-3 of an inode's format; bit 0 says extended. */
const FLAT_PLAIN = 0;
const FLAT_INLINE = 2;

const DIRENT_TYPES: Readonly<Record<InodeType, number>> = {
  file: 1,
  directory: 2,
  character: 3,
  block: 4,
  fifo: 5,
  symlink: 7,
};

export interface ErofsMetadata {
  /** The image from its first byte to `dataStart`. */
  readonly metadata: Buffer;
  /** Where the data area begins: a multiple of 4 KiB. */
  readonly dataStart: number;
  readonly inodes: number;
}

/** Where the writer puts an inode; sizes in bytes. */
interface Placed {
  readonly inode: LayerInode;
  readonly attributes: InodeAttributes;
  readonly xattrs: Buffer;
  readonly position: number;
  readonly extended: boolean;
  readonly size: number;
  /** Bytes of the last, incomplete block that follow the inode; 0 = none. */
  readonly inlineBytes: number;
  /** Blocks of a directory or a long symlink, counted from the end of the inode area. */
  readonly firstBlock: number;
  readonly directory: DirectoryPlan | undefined;
  readonly symlink: Buffer | undefined;
}

interface DirectoryPlan {
  readonly parent: LayerInode;
  /** `.` and `..` included, in the order of bytes. */
  readonly names: readonly string[];
  /** Index of the first name of each block. */
  readonly blockStarts: readonly number[];
  readonly size: number;
}

/**
 * Metadata of an EROFS file system (Linux `fs/erofs/erofs_fs.h`): superblock at 1024, inodes with xattrs, symlinks and
 * directory tails inline from 1152 on (`meta_blkaddr` 0), blocks of large directories, then the data area. Regular files are
 * FLAT_PLAIN. The same tree gives the same bytes everywhere.
 *
 * @param dataBlocks start of each entry's data in blocks from the start of the data area, by entry number.
 * @param dataBytes size of the data area.
 * @param uuid 16 bytes.
 * @throws LayerError for attributes that EROFS or Linux cannot hold.
 */
export function writeErofs(
  root: LayerDirectory,
  dataBlocks: Uint32Array,
  dataBytes: number,
  uuid: Uint8Array,
): ErofsMetadata {
  const epoch = mostFrequentTime(root);
  const layout = new Layout(epoch);
  layout.placeTree(root, root);
  const inodeBlocks = Math.ceil(layout.end / BLOCK);
  const dataStart = (inodeBlocks + layout.blocks) * BLOCK;
  const metadata = Buffer.alloc(dataStart);
  writeSuperblock(metadata, {
    rootNid: root.nid,
    inodes: layout.placed.length,
    epoch,
    blocks: (dataStart + dataBytes) / BLOCK,
    uuid,
  });
  for (let i = 0; i < layout.placed.length; i++) {
    const placed = layout.placed[i];
    if (placed === undefined) continue;
    const fileBlock = placed.size > 0 ? dataStart / BLOCK + (dataBlocks[placed.inode.entryNumber] ?? 0) : 0;
    const startBlock = placed.inode.type === 'file' ? fileBlock : inodeBlocks + placed.firstBlock;
    writeInode(metadata, placed, i + 1, startBlock);
    if (placed.directory !== undefined) writeDirectory(metadata, placed, placed.directory, startBlock);
    else if (placed.symlink !== undefined) {
      placed.symlink.copy(metadata, placed.inlineBytes > 0 ? inlineAt(placed) : startBlock * BLOCK);
    }
  }
  return { metadata, dataStart, inodes: layout.placed.length };
}

interface Time {
  readonly seconds: number;
  readonly nanoseconds: number;
}

/** Inodes with this time can be compact: they take theirs from the superblock. */
function mostFrequentTime(root: LayerDirectory): Time {
  const counts = new Map<number, { readonly inode: LayerInode; count: number }>();
  const visit = (inode: LayerInode): void => {
    const time = approximateTime(inode);
    const known = counts.get(time);
    if (known === undefined) counts.set(time, { inode, count: 1 });
    else known.count++;
    if (isDirectory(inode)) for (const child of inode.children.values()) visit(child);
  };
  visit(root);
  let best: { readonly inode: LayerInode; readonly count: number } = { inode: root, count: 0 };
  for (const candidate of counts.values()) if (candidate.count > best.count) best = candidate;
  const { mtimeSeconds: seconds, mtimeNanoseconds: nanoseconds } = attributesOf(best.inode);
  return { seconds, nanoseconds };
}

class Layout {
  readonly placed: Placed[] = [];
  /** End of the inode area so far. */
  end = SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES;
  /** Blocks after the inode area: directories and long symlinks. */
  blocks = 0;
  readonly #epoch: Time;
  /** Room left behind because an inline tail may not cross a block: small inodes go there. */
  #gapStart = 0;
  #gapEnd = 0;
  readonly #xattrs = new Map<object, Buffer>();

  constructor(epoch: Time) {
    this.#epoch = epoch;
  }

  /** A directory, then its other children, then its subdirectories: what readdir and stat want together lies together. */
  placeTree(directory: LayerDirectory, parent: LayerInode): void {
    this.#place(directory, planDirectory(directory, parent));
    for (const child of directory.children.values()) {
      if (!isDirectory(child) && child.nid === 0) this.#place(child, undefined);
    }
    for (const child of directory.children.values()) if (isDirectory(child)) this.placeTree(child, directory);
  }

  #place(inode: LayerInode, directory: DirectoryPlan | undefined): void {
    const attributes = attributesOf(inode);
    const xattrs = this.#xattrsOf(inode);
    const symlink = inode.type === 'symlink' ? (inode.entry?.linkName ?? Buffer.alloc(0)) : undefined;
    const size = directory?.size ?? symlink?.length ?? (inode.type === 'file' ? (inode.entry?.size ?? 0) : 0);
    const extended =
      attributes.uid > 0xffff ||
      attributes.gid > 0xffff ||
      size > 0xffff_ffff ||
      inode.links > 0xffff ||
      attributes.mtimeSeconds !== this.#epoch.seconds ||
      attributes.mtimeNanoseconds !== this.#epoch.nanoseconds;
    const headBytes = (extended ? EXTENDED_BYTES : COMPACT_BYTES) + xattrs.length;
    const tailBytes = inode.type === 'file' ? 0 : size % BLOCK;
    const inlineBytes = (headBytes % BLOCK) + tailBytes <= BLOCK ? tailBytes : 0;
    const blocks = inode.type === 'file' ? 0 : Math.ceil((size - inlineBytes) / BLOCK);
    const position = this.#allocate(headBytes, inlineBytes, extended);
    inode.nid = position / SLOT_BYTES;
    this.placed.push({
      inode,
      attributes,
      xattrs,
      position,
      extended,
      size,
      inlineBytes,
      firstBlock: blocks === 0 ? 0 : this.blocks,
      directory,
      symlink,
    });
    this.blocks += blocks;
  }

  /** Entries of a decoded index share their sets of xattrs. */
  #xattrsOf(inode: LayerInode): Buffer {
    const set = inode.entry?.xattrs;
    if (set === undefined || set.length === 0 || inode.opaque) return encodeXattrs(inode);
    let encoded = this.#xattrs.get(set);
    if (encoded === undefined) {
      encoded = encodeXattrs(inode);
      this.#xattrs.set(set, encoded);
    }
    return encoded;
  }

  /** A slot such that neither the inode nor its inline bytes cross a block. */
  #allocate(headBytes: number, inlineBytes: number, extended: boolean): number {
    const slots = roundUp(headBytes + inlineBytes, SLOT_BYTES);
    const inodeBytes = extended ? EXTENDED_BYTES : COMPACT_BYTES;
    if (this.#gapStart + slots <= this.#gapEnd) {
      const position = this.#gapStart;
      this.#gapStart += slots;
      return position;
    }
    let position = roundUp(this.end, SLOT_BYTES);
    const fits =
      (position % BLOCK) + inodeBytes <= BLOCK &&
      (inlineBytes === 0 || ((position + headBytes) % BLOCK) + inlineBytes <= BLOCK);
    if (!fits) {
      const next = roundUp(position, BLOCK);
      if (next - position > this.#gapEnd - this.#gapStart) {
        this.#gapStart = position;
        this.#gapEnd = next;
      }
      position = next;
    }
    this.end = position + slots;
    // Entries may share large xattrs in the index; here each has its own.
    if (this.end + this.blocks * BLOCK > LAYER_LIMITS.indexBytes) {
      throw new LayerError(
        'too-large',
        `Cannot take a layer with more than ${LAYER_LIMITS.indexBytes} bytes of metadata`,
      );
    }
    return position;
  }
}

function planDirectory(directory: LayerDirectory, parent: LayerInode): DirectoryPlan {
  const names = [...directory.children.keys(), '.', '..'].sort(byBytes);
  const blockStarts = [0];
  let used = 0;
  for (let i = 0; i < names.length; i++) {
    const need = DIRENT_BYTES + (names[i]?.length ?? 0);
    if (used + need > BLOCK) {
      blockStarts.push(i);
      used = 0;
    }
    used += need;
  }
  return { parent, names, blockStarts, size: (blockStarts.length - 1) * BLOCK + used };
}

/** Latin1 strings, one character a byte: comparing them compares bytes. */
function byBytes(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

interface SuperblockFields {
  readonly rootNid: number;
  readonly inodes: number;
  readonly epoch: Time;
  readonly blocks: number;
  readonly uuid: Uint8Array;
}

/**
 * `struct erofs_super_block`, 128 bytes: 0 LE32 magic, 4 LE32 checksum (feature off), 8 LE32 feature_compat, 12 u8 log2 of
 * the block, 13 u8 extension slots, 14 LE16 root nid, 16 LE64 inodes, 24 LE64 epoch seconds, 32 LE32 its nanoseconds,
 * 36 LE32 blocks, 40 LE32 meta_blkaddr, 44 LE32 xattr_blkaddr, 48 uuid[16], 64 volume name[16], 80 LE32 feature_incompat,
 * the rest zero.
 */
function writeSuperblock(image: Buffer, fields: SuperblockFields): void {
  const at = SUPERBLOCK_OFFSET;
  image.writeUInt32LE(MAGIC, at);
  image.writeUInt32LE(FEATURE_COMPAT_MTIME, at + 8);
  image.writeUInt8(12, at + 12);
  image.writeUInt16LE(fields.rootNid, at + 14);
  writeUInt64(image, fields.inodes, at + 16);
  writeUInt64(image, fields.epoch.seconds, at + 24);
  image.writeUInt32LE(fields.epoch.nanoseconds, at + 32);
  image.writeUInt32LE(fields.blocks, at + 36);
  image.set(fields.uuid.subarray(0, 16), at + 48);
}

/**
 * `struct erofs_inode_compact`, 32 bytes: 0 LE16 format, 2 LE16 xattr count, 4 LE16 mode, 6 LE16 links, 8 LE32 size,
 * 12 reserved, 16 LE32 start block or device, 20 LE32 number, 24 LE16 uid, 26 LE16 gid, 28 reserved.
 * `struct erofs_inode_extended`, 64 bytes: 0 format, 2 xattr count, 4 mode, 6 reserved, 8 LE64 size, 16 LE32 start block or
 * device, 20 LE32 number, 24 LE32 uid, 28 LE32 gid, 32 LE64 mtime, 40 LE32 its nanoseconds, 44 LE32 links, 48 reserved.
 */
function writeInode(image: Buffer, placed: Placed, number: number, startBlock: number): void {
  const { position: at, attributes, inode, size } = placed;
  const layout = placed.inlineBytes > 0 ? FLAT_INLINE : FLAT_PLAIN;
  const device = inode.type === 'character' || inode.type === 'block';
  image.writeUInt16LE((layout << 1) | (placed.extended ? 1 : 0), at);
  image.writeUInt16LE(xattrCount(placed.xattrs.length), at + 2);
  image.writeUInt16LE(attributes.mode, at + 4);
  image.writeUInt32LE(device ? attributes.device : startBlock, at + 16);
  image.writeUInt32LE(number, at + 20);
  if (placed.extended) {
    writeUInt64(image, size, at + 8);
    image.writeUInt32LE(attributes.uid, at + 24);
    image.writeUInt32LE(attributes.gid, at + 28);
    writeUInt64(image, attributes.mtimeSeconds, at + 32);
    image.writeUInt32LE(attributes.mtimeNanoseconds, at + 40);
    image.writeUInt32LE(inode.links, at + 44);
    placed.xattrs.copy(image, at + EXTENDED_BYTES);
  } else {
    image.writeUInt16LE(inode.links, at + 6);
    image.writeUInt32LE(size, at + 8);
    image.writeUInt16LE(attributes.uid, at + 24);
    image.writeUInt16LE(attributes.gid, at + 26);
    placed.xattrs.copy(image, at + COMPACT_BYTES);
  }
}

function inlineAt(placed: Placed): number {
  return placed.position + (placed.extended ? EXTENDED_BYTES : COMPACT_BYTES) + placed.xattrs.length;
}

/**
 * Each block: its dirents (`LE64 nid, LE16 offset of the name in the block, u8 type, u8 reserved`), then their names; the
 * first dirent's name offset tells how many there are.
 */
function writeDirectory(image: Buffer, placed: Placed, plan: DirectoryPlan, startBlock: number): void {
  const { names, blockStarts, parent } = plan;
  const self = placed.inode;
  for (let block = 0; block < blockStarts.length; block++) {
    const first = blockStarts[block] ?? 0;
    const end = blockStarts[block + 1] ?? names.length;
    const inline = placed.inlineBytes > 0 && block === blockStarts.length - 1;
    const base = inline ? inlineAt(placed) : (startBlock + block) * BLOCK;
    let nameAt = (end - first) * DIRENT_BYTES;
    for (let i = first; i < end; i++) {
      const name = names[i] ?? '';
      const child = name === '.' ? self : name === '..' ? parent : self.children?.get(name);
      if (child === undefined) continue;
      const at = base + (i - first) * DIRENT_BYTES;
      writeUInt64(image, child.nid, at);
      image.writeUInt16LE(nameAt, at + 8);
      image.writeUInt8(DIRENT_TYPES[child.type], at + 10);
      nameAt += image.write(name, base + nameAt, 'latin1');
    }
  }
}

/** A whole number below 2^53. */
function writeUInt64(image: Buffer, value: number, at: number): void {
  image.writeUInt32LE(value % 0x1_0000_0000, at);
  image.writeUInt32LE(Math.floor(value / 0x1_0000_0000), at + 4);
}

function roundUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit;
}
