import { LAYER_LIMITS, LayerError } from './layer-index.ts';
import type { LayerInode } from './layer-inode.ts';

/** Name prefixes that EROFS stores as a number; what has none of them the kernel could not show, so it is left out. */
const PREFIXES: readonly (readonly [prefix: Buffer, index: number, whole: boolean])[] = [
  [Buffer.from('user.'), 1, false],
  [Buffer.from('system.posix_acl_access'), 2, true],
  [Buffer.from('system.posix_acl_default'), 3, true],
  [Buffer.from('trusted.'), 4, false],
  [Buffer.from('security.'), 6, false],
];

const TRUSTED = Buffer.from('trusted.');
const OPAQUE: readonly [Buffer, Buffer] = [Buffer.from('trusted.overlay.opaque'), Buffer.from('y')];

const NO_XATTRS = Buffer.alloc(0);

/**
 * The inline xattrs of an inode: a header of 12 bytes (`erofs_xattr_ibody_header`: LE32 name filter, u8 shared count, 7
 * reserved; all zero here), then entries of 4 bytes (u8 name length, u8 prefix index, LE16 value length), name and value,
 * each entry padded to 4. Empty where the inode has none.
 *
 * @throws LayerError `too-large` past what EROFS can hold.
 */
export function encodeXattrs(inode: LayerInode): Buffer {
  const own = inode.entry?.xattrs ?? [];
  if (own.length === 0 && !inode.opaque) return NO_XATTRS;
  const byName = new Map<string, readonly [number, Buffer, Buffer]>();
  for (const [name, value] of inode.opaque ? [...own, OPAQUE] : own) {
    // As containerd unpacks: an image has no say in what overlayfs and other programs of the host keep there.
    if (value !== OPAQUE[1] && name.subarray(0, TRUSTED.length).equals(TRUSTED)) continue;
    const prefix = PREFIXES.find(([text, , whole]) =>
      whole ? name.equals(text) : name.length > text.length && name.subarray(0, text.length).equals(text),
    );
    if (prefix === undefined) continue;
    byName.set(name.toString('latin1'), [prefix[1], name.subarray(prefix[0].length), value]);
  }
  if (byName.size === 0) return NO_XATTRS;
  let size = 12;
  for (const [, suffix, value] of byName.values()) {
    if (suffix.length > 255 || value.length > 65_535) throw tooLarge(inode, suffix.length + value.length);
    size += roundUp4(4 + suffix.length + value.length);
  }
  // Padding and entry heads may come on top of what the limit counts.
  if (size > 2 * LAYER_LIMITS.xattrBytes) throw tooLarge(inode, size);
  const bytes = Buffer.alloc(size);
  let at = 12;
  for (const [index, suffix, value] of byName.values()) {
    bytes.writeUInt8(suffix.length, at);
    bytes.writeUInt8(index, at + 1);
    bytes.writeUInt16LE(value.length, at + 2);
    suffix.copy(bytes, at + 4);
    value.copy(bytes, at + 4 + suffix.length);
    at += roundUp4(4 + suffix.length + value.length);
  }
  return bytes;
}

/** `i_xattr_icount` of an inode with that many bytes of xattrs. */
export function xattrCount(bytes: number): number {
  return bytes === 0 ? 0 : (bytes - 12) / 4 + 1;
}

function roundUp4(size: number): number {
  return (size + 3) & ~3;
}

function tooLarge(inode: LayerInode, bytes: number): LayerError {
  const path = inode.entry?.path.subarray(0, 200).toString('utf8') ?? '';
  return new LayerError('too-large', `Cannot keep ${bytes} bytes of xattrs of ${JSON.stringify(path)}`);
}
