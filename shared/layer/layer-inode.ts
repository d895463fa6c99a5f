import type { LayerEntry } from './layer-index.ts';

export type InodeType = 'file' | 'directory' | 'symlink' | 'character' | 'block' | 'fifo';

/** File types in the upper bits of a mode (`stat(2)`). */
export const FORMAT_BITS: Readonly<Record<InodeType, number>> = {
  fifo: 0o010000,
  character: 0o020000,
  directory: 0o040000,
  block: 0o060000,
  file: 0o100000,
  symlink: 0o120000,
};

/**
 * A file of the layer's tree. Names are latin1 strings, one character per byte: they compare as bytes do.
 * Hard links are the same inode under several names.
 */
export class LayerInode {
  readonly type: InodeType;
  /** The entry that its attributes come from; undefined for implied directories, whiteouts and an implied root. */
  entry: LayerEntry | undefined;
  /** Position of a file's entry in the index, which places its data; -1 for all else. */
  readonly entryNumber: number;
  /** Names that a file has; for a directory the subdirectories plus 2. */
  links: number;
  readonly children: Map<string, LayerInode> | undefined;
  /** `.wh..wh..opq` stood in it: nothing of lower layers shows through. */
  opaque = false;
  readonly whiteout: boolean;
  /** EROFS's number of it, set by the writer. */
  nid = 0;

  constructor(type: InodeType, entry: LayerEntry | undefined, entryNumber: number, whiteout = false) {
    this.type = type;
    this.entry = entry;
    this.entryNumber = entryNumber;
    this.whiteout = whiteout;
    const directory = type === 'directory';
    this.links = directory ? 2 : 0;
    this.children = directory ? new Map() : undefined;
  }

  get implied(): boolean {
    return this.type === 'directory' && this.entry === undefined;
  }
}

/** A LayerInode that is a directory. */
export type LayerDirectory = LayerInode & { readonly children: Map<string, LayerInode> };

export function isDirectory(inode: LayerInode | undefined): inode is LayerDirectory {
  return inode?.children !== undefined;
}
