import { LayerError } from './layer-index.ts';
import { FORMAT_BITS, type LayerInode } from './layer-inode.ts';

/** What stat(2) tells of an inode besides its size and links. */
export interface InodeAttributes {
  /** Type and permission bits. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtimeSeconds: number;
  readonly mtimeNanoseconds: number;
  /** As the kernel's new_encode_dev() has it; 0 for what is no device. */
  readonly device: number;
}

/** Last second whose nanoseconds since 1970 fit 64 bits. */
const MAX_SECONDS = 9_223_372_036;

const IMPLIED: InodeAttributes = {
  mode: FORMAT_BITS.directory | 0o755,
  uid: 0,
  gid: 0,
  mtimeSeconds: 0,
  mtimeNanoseconds: 0,
  device: 0,
};

const WHITEOUT: InodeAttributes = { ...IMPLIED, mode: FORMAT_BITS.character };

/**
 * Attributes as containerd's unpack would leave them: symlinks are 0777, and a time before 1970 or past the range of 64-bit
 * nanoseconds becomes 0.
 *
 * @throws LayerError `malformed` for owners and device numbers that Linux cannot have.
 */
export function attributesOf(inode: LayerInode): InodeAttributes {
  const { entry, type } = inode;
  if (entry === undefined) return inode.whiteout ? WHITEOUT : IMPLIED;
  const { uid, gid, mtimeSeconds: seconds, mtimeNanoseconds: nanoseconds } = entry;
  const path = () => JSON.stringify(entry.path.subarray(0, 200).toString('utf8'));
  // 2^32 - 1 means "no owner" to chown(2).
  if (!(isWhole(uid, 0xffff_fffe) && isWhole(gid, 0xffff_fffe))) {
    throw new LayerError('malformed', `Cannot take ${path()}: its owner ${uid}:${gid} is no owner on Linux`);
  }
  if (!Number.isSafeInteger(seconds) || !isWhole(nanoseconds, 999_999_999)) {
    throw new LayerError('malformed', `Cannot take ${path()}: its time ${seconds} s ${nanoseconds} ns is no time`);
  }
  let device = 0;
  if (type === 'character' || type === 'block') {
    const { deviceMajor: major, deviceMinor: minor } = entry;
    if (!(isWhole(major, 0xfff) && isWhole(minor, 0xf_ffff))) {
      throw new LayerError('malformed', `Cannot take ${path()}: Linux has no device ${major}:${minor}`);
    }
    device = ((minor & 0xff) | (major << 8) | ((minor & 0xf_ff00) << 12)) >>> 0;
  }
  return {
    mode: FORMAT_BITS[type] | (type === 'symlink' ? 0o777 : entry.mode & 0o7777),
    uid,
    gid,
    mtimeSeconds: isShown(seconds) ? seconds : 0,
    mtimeNanoseconds: isShown(seconds) ? nanoseconds : 0,
    device,
  };
}

/** The time as `attributesOf` gives it, the nanoseconds as a fraction: close enough to count equal ones. */
export function approximateTime({ entry }: LayerInode): number {
  return entry !== undefined && isShown(entry.mtimeSeconds) ? entry.mtimeSeconds + entry.mtimeNanoseconds / 1e9 : 0;
}

function isShown(seconds: number): boolean {
  return seconds >= 0 && seconds < MAX_SECONDS;
}

function isWhole(value: number, max: number): boolean {
  return Number.isInteger(value) && value >= 0 && value <= max;
}
