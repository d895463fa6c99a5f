/**
 * The part of the FUSE protocol that a flat folder of read-only files needs. All integers are little-endian here (the kernel
 * uses the machine's order; only little-endian machines are supported). Source: Linux `include/uapi/linux/fuse.h`, 7.38 and the
 * additions of 7.40 (resend).
 *
 * Every request begins with `fuse_in_header`, 40 bytes:
 *
 *   0 u32 len | 4 u32 opcode | 8 u64 unique | 16 u64 nodeid | 24 u32 uid | 28 u32 gid | 32 u32 pid | 36 u16 total_extlen | 38 u16 pad
 *
 * Every reply with `fuse_out_header`, 16 bytes: 0 u32 len | 4 i32 error (negative errno) | 8 u64 unique.
 */
export const IN_HEADER_BYTES = 40;
export const OUT_HEADER_BYTES = 16;
export const ROOT_INODE = 1n;

export const OPCODE = {
  lookup: 1,
  forget: 2,
  getattr: 3,
  open: 14,
  read: 15,
  statfs: 17,
  release: 18,
  flush: 25,
  init: 26,
  opendir: 27,
  readdir: 28,
  releasedir: 29,
  access: 34,
  interrupt: 36,
  destroy: 38,
  batchForget: 42,
} as const;

/** Codes in the error field of a message with `unique` 0. */
export const NOTIFY = { invalidateInode: 2, invalidateEntry: 3, resend: 7 } as const;

export const ERRNO = {
  ENOENT: 2,
  EINTR: 4,
  EIO: 5,
  EACCES: 13,
  ENOTDIR: 20,
  EISDIR: 21,
  EINVAL: 22,
  EROFS: 30,
  ENOSYS: 38,
} as const;

/** Flags of INIT; those from bit 32 on are in the second word. */
export const INIT_FLAG = {
  asyncRead: 1 << 0,
  parallelDirectoryOperations: 1 << 18,
  maxPages: 1 << 22,
  initExt: 1 << 30,
} as const;
export const INIT_FLAG2 = { hasResend: 1 << 7 } as const;

/** FOPEN_KEEP_CACHE: what is cached of the file stays right over opens, since the files never change. */
const OPEN_FLAGS = 1 << 1;

/** One request may ask for this much: 256 pages, the kernel's limit. */
export const MAX_READ_BYTES = 1024 * 1024;
const MAX_PAGES = MAX_READ_BYTES / 4096;
/**
 * Of the files here the kernel asks for what is read and no more. Reading ahead is for EROFS, which knows where a file ends; here it would
 * take what other files have behind it, have it fetched, and keep the reader waiting for it. No less than a page: at 0 the kernel asks
 * page by page.
 */
export const READ_AHEAD_BYTES = 4096;
/** Requests of the kernel that may run in the background (read-ahead), and how many make it hold new ones back. */
export const BACKGROUND_LIMITS = { most: 64, congested: 48 } as const;
/** Files never change; a name that is taken away is invalidated. */
const VALID_SECONDS = 365n * 24n * 3600n;
const BLOCK_BYTES = 4096;

export interface RequestHeader {
  readonly opcode: number;
  readonly nodeid: bigint;
  readonly pid: number;
}

/** Undefined when the message is not one whole request. */
export function readHeader(message: Buffer): RequestHeader | undefined {
  if (message.length < IN_HEADER_BYTES || message.readUInt32LE(0) !== message.length) return undefined;
  return { opcode: message.readUInt32LE(4), nodeid: message.readBigUInt64LE(16), pid: message.readUInt32LE(32) };
}

/** A whole reply; `unique` is copied as it is, so bit 63 (resent) comes back too. */
export function reply(request: Buffer, error: number, bodyBytes = 0): Buffer {
  const message = Buffer.alloc(OUT_HEADER_BYTES + bodyBytes);
  replyHeader(message, request, error, bodyBytes);
  return message;
}

export function replyHeader(target: Buffer, request: Buffer, error: number, bodyBytes: number): void {
  target.writeUInt32LE(OUT_HEADER_BYTES + bodyBytes, 0);
  target.writeInt32LE(-error, 4);
  request.copy(target, 8, 8, 16);
}

export interface InitRequest {
  readonly major: number;
  readonly minor: number;
  readonly maxReadahead: number;
  readonly flags: number;
  readonly flags2: number;
}

/**
 * `fuse_init_in`: 0 u32 major | 4 u32 minor | 8 u32 max_readahead | 12 u32 flags | 16 u32 flags2 | 20 u32 unused[11] = 64.
 * Before 7.36 it ends after flags.
 */
export function readInit(request: Buffer): InitRequest | undefined {
  const at = IN_HEADER_BYTES;
  if (request.length < at + 16) return undefined;
  return {
    major: request.readUInt32LE(at),
    minor: request.readUInt32LE(at + 4),
    maxReadahead: request.readUInt32LE(at + 8),
    flags: request.readUInt32LE(at + 12),
    flags2: request.length >= at + 20 ? request.readUInt32LE(at + 16) : 0,
  };
}

/**
 * `fuse_init_out`: 0 u32 major | 4 u32 minor | 8 u32 max_readahead | 12 u32 flags | 16 u16 max_background |
 * 18 u16 congestion_threshold | 20 u32 max_write | 24 u32 time_gran | 28 u16 max_pages | 30 u16 map_alignment | 32 u32 flags2 |
 * 36 u32 unused[7] = 64.
 */
export function initReply(request: Buffer, init: InitRequest): Buffer {
  const wanted = INIT_FLAG.asyncRead | INIT_FLAG.parallelDirectoryOperations | INIT_FLAG.maxPages | INIT_FLAG.initExt;
  const message = reply(request, 0, 64);
  const at = OUT_HEADER_BYTES;
  message.writeUInt32LE(7, at);
  message.writeUInt32LE(Math.min(init.minor, 40), at + 4);
  message.writeUInt32LE(Math.min(init.maxReadahead, READ_AHEAD_BYTES), at + 8);
  message.writeUInt32LE((init.flags & wanted) >>> 0, at + 12);
  message.writeUInt16LE(BACKGROUND_LIMITS.most, at + 16);
  message.writeUInt16LE(BACKGROUND_LIMITS.congested, at + 18);
  message.writeUInt32LE(BLOCK_BYTES, at + 20);
  message.writeUInt32LE(1, at + 24);
  message.writeUInt16LE(MAX_PAGES, at + 28);
  message.writeUInt32LE((init.flags2 & INIT_FLAG2.hasResend) >>> 0, at + 32);
  return message;
}

export interface Attributes {
  readonly inode: bigint;
  readonly sizeBytes: number;
  readonly folder: boolean;
}

const ATTRIBUTES_BYTES = 88;

/**
 * `fuse_attr`: 0 u64 ino | 8 u64 size | 16 u64 blocks (512) | 24 u64 atime | 32 u64 mtime | 40 u64 ctime | 48 u32 atimensec |
 * 52 u32 mtimensec | 56 u32 ctimensec | 60 u32 mode | 64 u32 nlink | 68 u32 uid | 72 u32 gid | 76 u32 rdev | 80 u32 blksize | 84 u32 flags
 * = 88. Only root may look: the images hold what their containers may not see.
 */
function writeAttributes(message: Buffer, at: number, attributes: Attributes): void {
  message.writeBigUInt64LE(attributes.inode, at);
  message.writeBigUInt64LE(BigInt(attributes.sizeBytes), at + 8);
  message.writeBigUInt64LE(BigInt(Math.ceil(attributes.sizeBytes / 512)), at + 16);
  message.writeUInt32LE(attributes.folder ? 0o40500 : 0o100400, at + 60);
  message.writeUInt32LE(attributes.folder ? 2 : 1, at + 64);
  message.writeUInt32LE(BLOCK_BYTES, at + 80);
}

/** `fuse_entry_out`: 0 u64 nodeid | 8 u64 generation | 16 u64 entry_valid | 24 u64 attr_valid | 32 u32 nsec | 36 u32 nsec | 40 attr = 128. */
export function entryReply(request: Buffer, attributes: Attributes): Buffer {
  const message = reply(request, 0, 40 + ATTRIBUTES_BYTES);
  message.writeBigUInt64LE(attributes.inode, OUT_HEADER_BYTES);
  message.writeBigUInt64LE(VALID_SECONDS, OUT_HEADER_BYTES + 16);
  message.writeBigUInt64LE(VALID_SECONDS, OUT_HEADER_BYTES + 24);
  writeAttributes(message, OUT_HEADER_BYTES + 40, attributes);
  return message;
}

/** `fuse_attr_out`: 0 u64 attr_valid | 8 u32 nsec | 12 u32 pad | 16 attr = 104. A folder's attributes are not kept: files come and go. */
export function attributesReply(request: Buffer, attributes: Attributes): Buffer {
  const message = reply(request, 0, 16 + ATTRIBUTES_BYTES);
  message.writeBigUInt64LE(attributes.folder ? 0n : VALID_SECONDS, OUT_HEADER_BYTES);
  writeAttributes(message, OUT_HEADER_BYTES + 16, attributes);
  return message;
}

/** `fuse_open_out`: 0 u64 fh | 8 u32 open_flags | 12 u32 padding = 16. No state is kept per open: fh is 0. */
export function openReply(request: Buffer, folder: boolean): Buffer {
  const message = reply(request, 0, 16);
  message.writeUInt32LE(folder ? 0 : OPEN_FLAGS, OUT_HEADER_BYTES + 8);
  return message;
}

export interface ReadRequest {
  readonly offset: number;
  readonly size: number;
}

/** `fuse_read_in`, READ and READDIR: 0 u64 fh | 8 u64 offset | 16 u32 size | 20 u32 read_flags | 24 u64 lock_owner | 32 u32 flags | 36 pad = 40. */
export function readRead(request: Buffer): ReadRequest | undefined {
  if (request.length < IN_HEADER_BYTES + 40) return undefined;
  const offset = request.readBigUInt64LE(IN_HEADER_BYTES + 8);
  const size = request.readUInt32LE(IN_HEADER_BYTES + 16);
  if (offset > BigInt(Number.MAX_SAFE_INTEGER) || size > MAX_READ_BYTES) return undefined;
  return { offset: Number(offset), size };
}

/** A name ends with a zero byte; one that is empty or has a slash is none. */
export function readName(request: Buffer): string | undefined {
  const end = request.indexOf(0, IN_HEADER_BYTES);
  if (end <= IN_HEADER_BYTES) return undefined;
  const name = request.toString('utf8', IN_HEADER_BYTES, end);
  return name.includes('/') ? undefined : name;
}

/** `fuse_interrupt_in`: 0 u64 unique. The bit that marks a resent request is not part of it. */
export function readInterrupt(request: Buffer): bigint | undefined {
  if (request.length < IN_HEADER_BYTES + 8) return undefined;
  return BigInt.asUintN(63, request.readBigUInt64LE(IN_HEADER_BYTES));
}

export interface DirectoryEntry {
  readonly name: string;
  readonly inode: bigint;
  readonly folder: boolean;
}

/**
 * As many `fuse_dirent` from entry `first` on as fit in `size`: 0 u64 ino | 8 u64 off (of the next) | 16 u32 namelen | 20 u32 type |
 * 24 name, padded to 8.
 */
export function directoryReply(
  request: Buffer,
  entries: readonly DirectoryEntry[],
  first: number,
  size: number,
): Buffer {
  const parts: Buffer[] = [];
  let bytes = 0;
  for (let index = first; index < entries.length; index++) {
    const entry = entries[index];
    if (entry === undefined) break;
    const nameBytes = Buffer.byteLength(entry.name);
    const part = Buffer.alloc((24 + nameBytes + 7) & ~7);
    if (bytes + part.length > size) break;
    part.writeBigUInt64LE(entry.inode, 0);
    part.writeBigUInt64LE(BigInt(index + 1), 8);
    part.writeUInt32LE(nameBytes, 16);
    part.writeUInt32LE(entry.folder ? 4 : 8, 20);
    part.write(entry.name, 24);
    parts.push(part);
    bytes += part.length;
  }
  return Buffer.concat([reply(request, 0, 0), ...parts]).fill(lengthWord(OUT_HEADER_BYTES + bytes), 0, 4);
}

/**
 * `fuse_kstatfs`: 0 u64 blocks | 8 u64 bfree | 16 u64 bavail | 24 u64 files | 32 u64 ffree | 40 u32 bsize | 44 u32 namelen |
 * 48 u32 frsize | 52 u32 padding | 56 u32 spare[6] = 80.
 */
export function statfsReply(request: Buffer, totalBytes: number, freeBytes: number, files: number): Buffer {
  const message = reply(request, 0, 80);
  const at = OUT_HEADER_BYTES;
  const free = BigInt(Math.floor(freeBytes / BLOCK_BYTES));
  message.writeBigUInt64LE(BigInt(Math.floor(totalBytes / BLOCK_BYTES)), at);
  message.writeBigUInt64LE(free, at + 8);
  message.writeBigUInt64LE(free, at + 16);
  message.writeBigUInt64LE(BigInt(files), at + 24);
  message.writeUInt32LE(BLOCK_BYTES, at + 40);
  message.writeUInt32LE(255, at + 44);
  message.writeUInt32LE(BLOCK_BYTES, at + 48);
  return message;
}

/** Queues every request again that was read by an agent and not answered (kernel >= 6.9; EINVAL before). */
export function resendNotice(): Buffer {
  return notice(NOTIFY.resend, 0);
}

/** `fuse_notify_inval_inode_out`: 0 u64 ino | 8 i64 off | 16 i64 len (0 = to the end). */
export function invalidateInodeNotice(inode: bigint): Buffer {
  const message = notice(NOTIFY.invalidateInode, 24);
  message.writeBigUInt64LE(inode, OUT_HEADER_BYTES);
  return message;
}

/** `fuse_notify_inval_entry_out`: 0 u64 parent | 8 u32 namelen | 12 u32 flags | 16 name, zero byte. */
export function invalidateEntryNotice(parent: bigint, name: string): Buffer {
  const nameBytes = Buffer.byteLength(name);
  const message = notice(NOTIFY.invalidateEntry, 16 + nameBytes + 1);
  message.writeBigUInt64LE(parent, OUT_HEADER_BYTES);
  message.writeUInt32LE(nameBytes, OUT_HEADER_BYTES + 8);
  message.write(name, OUT_HEADER_BYTES + 16);
  return message;
}

function notice(code: number, bodyBytes: number): Buffer {
  const message = Buffer.alloc(OUT_HEADER_BYTES + bodyBytes);
  message.writeUInt32LE(message.length, 0);
  message.writeInt32LE(code, 4);
  return message;
}

function lengthWord(value: number): Buffer {
  const word = Buffer.alloc(4);
  word.writeUInt32LE(value);
  return word;
}
