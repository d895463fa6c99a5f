import type { EntryType, LayerEntry } from '#shared/layer/layer-index.ts';
import { TAR_BLOCK_BYTES, TAR_FIELDS, type TarField, type TarHeader } from './tar-header.ts';

/** What ends an archive. */
export const TAR_END = Buffer.alloc(2 * TAR_BLOCK_BYTES);

const TYPE_FLAGS: Readonly<Record<EntryType, string>> = {
  file: '0',
  hardlink: '1',
  symlink: '2',
  character: '3',
  block: '4',
  directory: '5',
  fifo: '6',
};

/** Largest number in an octal field of 7 and of 11 digits. */
const OCTAL_7 = 0o7777777;
const OCTAL_11 = 0o77777777777;

/** All of an entry but where its content lies. */
export type TarEntry = Omit<LayerEntry, 'extents'>;

/**
 * The header blocks of an entry: one ustar block, before it a PAX header for what ustar cannot say (long or non-ASCII
 * names, fractions of a second, large numbers, xattrs). Content of `entry.size` bytes and `tarPadding` follow. The same
 * entry gives the same bytes everywhere. Holes are not kept.
 */
export function tarHeader(entry: TarEntry): Buffer {
  const directory = entry.type === 'directory';
  const path = entry.path.length === 0 ? Buffer.from('./') : entry.path;
  const name = directory && path.at(-1) !== 0x2f ? Buffer.concat([path, Buffer.from('/')]) : path;
  const size = entry.type === 'file' ? entry.size : 0;
  const records: Buffer[] = [];
  const pax = (key: string, value: Buffer | string) => records.push(paxRecord(key, Buffer.from(value)));

  if (name.length > 100 || !isAscii(name)) pax('path', name);
  if (entry.linkName.length > 100 || !isAscii(entry.linkName)) pax('linkpath', entry.linkName);
  if (size > OCTAL_11) pax('size', String(size));
  if (entry.uid > OCTAL_7) pax('uid', String(entry.uid));
  if (entry.gid > OCTAL_7) pax('gid', String(entry.gid));
  const plainTime = entry.mtimeNanoseconds === 0 && entry.mtimeSeconds >= 0 && entry.mtimeSeconds <= OCTAL_11;
  if (!plainTime) pax('mtime', timeText(entry.mtimeSeconds, entry.mtimeNanoseconds));
  for (const [key, value] of entry.xattrs) pax(`SCHILY.xattr.${key.toString('latin1')}`, value);

  const device = entry.type === 'character' || entry.type === 'block';
  const header = block({
    name,
    linkName: entry.linkName,
    type: TYPE_FLAGS[entry.type],
    mode: entry.mode & 0o7777,
    uid: Math.min(entry.uid, OCTAL_7),
    gid: Math.min(entry.gid, OCTAL_7),
    size: Math.min(size, OCTAL_11),
    mtime: plainTime ? entry.mtimeSeconds : 0,
    deviceMajor: device ? entry.deviceMajor : 0,
    deviceMinor: device ? entry.deviceMinor : 0,
  });
  if (records.length === 0) return header;
  const body = Buffer.concat(records);
  const paxHeader = block({
    name: Buffer.from('PaxHeaders/entry'),
    linkName: Buffer.alloc(0),
    type: 'x',
    mode: 0o644,
    uid: 0,
    gid: 0,
    size: body.length,
    mtime: 0,
    deviceMajor: 0,
    deviceMinor: 0,
  });
  return Buffer.concat([paxHeader, body, tarPadding(body.length), header]);
}

/** The zeros between content of `size` bytes and the next header. */
export function tarPadding(size: number): Buffer {
  return Buffer.alloc((TAR_BLOCK_BYTES - (size % TAR_BLOCK_BYTES)) % TAR_BLOCK_BYTES);
}

function block(fields: Omit<TarHeader, 'gnu'>): Buffer {
  const block = Buffer.alloc(TAR_BLOCK_BYTES);
  const { name, linkName, checksum } = TAR_FIELDS;
  fields.name.copy(block, name.at, 0, name.bytes);
  for (const key of ['mode', 'uid', 'gid', 'size', 'mtime', 'deviceMajor', 'deviceMinor'] as const) {
    octal(block, TAR_FIELDS[key], fields[key]);
  }
  block.fill(0x20, checksum.at, checksum.at + checksum.bytes);
  block.write(fields.type, TAR_FIELDS.type.at, 'latin1');
  fields.linkName.copy(block, linkName.at, 0, linkName.bytes);
  block.write('ustar\u000000', TAR_FIELDS.magic.at, 'latin1');
  let sum = 0;
  for (const byte of block) sum += byte;
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, checksum.at, 'latin1');
  return block;
}

function octal(block: Buffer, { at, bytes }: TarField, value: number): void {
  block.write(value.toString(8).padStart(bytes - 1, '0'), at, 'latin1');
}

/** `LENGTH KEY=VALUE\n` where LENGTH counts its own digits too. */
function paxRecord(key: string, value: Buffer): Buffer {
  const rest = Buffer.concat([Buffer.from(` ${key}=`, 'latin1'), value, Buffer.from('\n')]);
  let length = rest.length + 1;
  while (String(length).length + rest.length !== length) length++;
  return Buffer.concat([Buffer.from(String(length)), rest]);
}

function timeText(seconds: number, nanoseconds: number): string {
  const negative = seconds < 0;
  const whole = negative && nanoseconds > 0 ? -seconds - 1 : Math.abs(seconds);
  const fraction = negative && nanoseconds > 0 ? 1_000_000_000 - nanoseconds : nanoseconds;
  const digits = fraction === 0 ? '' : `.${String(fraction).padStart(9, '0').replace(/0+$/, '')}`;
  return `${negative ? '-' : ''}${whole}${digits}`;
}

function isAscii(bytes: Buffer): boolean {
  return bytes.every((byte) => byte < 0x80);
}
