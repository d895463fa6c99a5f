import { LayerError } from '#shared/layer/layer-index.ts';
import { tarNumber } from './tar-number.ts';

export const TAR_BLOCK_BYTES = 512;

/** Where the fields of a 512-byte header are, in all variants: ustar and star (POSIX.1-2001 pax), GNU (GNU tar `tar.h`). */
export const TAR_FIELDS = {
  name: { at: 0, bytes: 100 },
  mode: { at: 100, bytes: 8 },
  uid: { at: 108, bytes: 8 },
  gid: { at: 116, bytes: 8 },
  size: { at: 124, bytes: 12 },
  mtime: { at: 136, bytes: 12 },
  checksum: { at: 148, bytes: 8 },
  type: { at: 156, bytes: 1 },
  linkName: { at: 157, bytes: 100 },
  magic: { at: 257, bytes: 8 },
  deviceMajor: { at: 329, bytes: 8 },
  deviceMinor: { at: 337, bytes: 8 },
  prefix: { at: 345, bytes: 155 },
  starPrefix: { at: 345, bytes: 131 },
  gnuSparse: { at: 386, bytes: 96 },
  gnuIsExtended: { at: 482, bytes: 1 },
  gnuRealSize: { at: 483, bytes: 12 },
  starMagic: { at: 508, bytes: 4 },
} as const satisfies Record<string, TarField>;

export interface TarField {
  /** Byte within the header. */
  readonly at: number;
  readonly bytes: number;
}

/** One header, whichever variant it is of. */
export interface TarHeader {
  readonly name: Buffer;
  readonly linkName: Buffer;
  /** One character; NUL of ancient archives is given as `0`. */
  readonly type: string;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly size: number;
  readonly mtime: number;
  readonly deviceMajor: number;
  readonly deviceMinor: number;
  readonly gnu: boolean;
}

const F = TAR_FIELDS;

/** @throws LayerError `malformed` on a wrong checksum or number; `where` names the header's place. */
export function parseTarHeader(block: Buffer, where: string): TarHeader {
  checkSum(block, where);
  const gnu = latin1(block, F.magic) === 'ustar  \0';
  const posix = latin1(block, F.magic).startsWith('ustar\0');
  const star = posix && latin1(block, F.starMagic) === 'tar\0';
  let name = text(block, F.name);
  if (posix) {
    const prefix = text(block, star ? F.starPrefix : F.prefix);
    if (prefix.length > 0) name = Buffer.concat([prefix, Buffer.from('/'), name]);
  }
  const type = block[F.type.at] ?? 0;
  const ancient = type === 0;
  const device = gnu || posix;
  return {
    name,
    linkName: text(block, F.linkName),
    type: ancient ? (name.at(-1) === 0x2f ? '5' : '0') : String.fromCharCode(type),
    mode: tarNumber(block, F.mode, 'mode'),
    uid: tarNumber(block, F.uid, 'uid'),
    gid: tarNumber(block, F.gid, 'gid'),
    size: tarNumber(block, F.size, 'size'),
    mtime: tarNumber(block, F.mtime, 'mtime'),
    deviceMajor: device ? tarNumber(block, F.deviceMajor, 'devmajor') : 0,
    deviceMinor: device ? tarNumber(block, F.deviceMinor, 'devminor') : 0,
    gnu,
  };
}

/** A NUL-terminated field. */
function text(block: Buffer, { at, bytes }: TarField): Buffer {
  const field = block.subarray(at, at + bytes);
  const end = field.indexOf(0);
  return end < 0 ? field : field.subarray(0, end);
}

function latin1(block: Buffer, { at, bytes }: TarField): string {
  return block.toString('latin1', at, at + bytes);
}

/** The sum of all bytes with the checksum field as spaces; some old writers summed signed bytes. */
function checkSum(block: Buffer, where: string): void {
  let unsigned = 0;
  let signed = 0;
  for (let i = 0; i < TAR_BLOCK_BYTES; i++) {
    const byte = i >= F.checksum.at && i < F.checksum.at + F.checksum.bytes ? 0x20 : (block[i] ?? 0);
    unsigned += byte;
    signed += byte < 128 ? byte : byte - 256;
  }
  const wanted = tarNumber(block, F.checksum, 'chksum');
  if (wanted !== unsigned && wanted !== signed) {
    throw new LayerError(
      'malformed',
      `Cannot read the tar header ${where}: its checksum is ${wanted}, not ${unsigned}`,
    );
  }
}

export function isZeroBlock(block: Buffer): boolean {
  for (let i = 0; i < TAR_BLOCK_BYTES; i++) if (block[i] !== 0) return false;
  return true;
}
