import { LayerError } from '#shared/layer/layer-index.ts';
import { tarNumber } from './tar-number.ts';

export const TAR_BLOCK_BYTES = 512;

/**
 * One 512-byte header, all variants (POSIX.1-2001 pax, GNU tar `tar.h`):
 *
 *   0  name[100]   100 mode[8]    108 uid[8]      116 gid[8]       124 size[12]   136 mtime[12]   148 chksum[8]
 * 156  typeflag[1] 157 linkname[100]  257 magic[6] + version[2]    265 uname[32]  297 gname[32]   329 devmajor[8]
 * 337  devminor[8] 345 ustar: prefix[155], star: prefix[131]; GNU: 386 sparse[4 x 24], 482 isextended, 483 realsize[12]
 */
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

/** @throws LayerError `malformed` on a wrong checksum or number; `where` names the header's place. */
export function parseTarHeader(block: Buffer, where: string): TarHeader {
  checkSum(block, where);
  const gnu = block.toString('latin1', 257, 265) === 'ustar  \0';
  const posix = block.toString('latin1', 257, 263) === 'ustar\0';
  const star = posix && block.toString('latin1', 508, 512) === 'tar\0';
  let name = text(block, 0, 100);
  if (posix) {
    const prefix = text(block, 345, star ? 131 : 155);
    if (prefix.length > 0) name = Buffer.concat([prefix, Buffer.from('/'), name]);
  }
  const ancient = block[156] === 0;
  const device = gnu || posix;
  return {
    name,
    linkName: text(block, 157, 100),
    type: ancient ? (name.at(-1) === 0x2f ? '5' : '0') : String.fromCharCode(block[156] ?? 0),
    mode: tarNumber(block, 100, 8, 'mode'),
    uid: tarNumber(block, 108, 8, 'uid'),
    gid: tarNumber(block, 116, 8, 'gid'),
    size: tarNumber(block, 124, 12, 'size'),
    mtime: tarNumber(block, 136, 12, 'mtime'),
    deviceMajor: device ? tarNumber(block, 329, 8, 'devmajor') : 0,
    deviceMinor: device ? tarNumber(block, 337, 8, 'devminor') : 0,
    gnu,
  };
}

/** A NUL-terminated field. */
function text(block: Buffer, at: number, length: number): Buffer {
  const field = block.subarray(at, at + length);
  const end = field.indexOf(0);
  return end < 0 ? field : field.subarray(0, end);
}

/** The sum of all bytes with the checksum field as spaces; some old writers summed signed bytes. */
function checkSum(block: Buffer, where: string): void {
  let unsigned = 0;
  let signed = 0;
  for (let i = 0; i < TAR_BLOCK_BYTES; i++) {
    const byte = i >= 148 && i < 156 ? 0x20 : (block[i] ?? 0);
    unsigned += byte;
    signed += byte < 128 ? byte : byte - 256;
  }
  const wanted = tarNumber(block, 148, 8, 'chksum');
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
