import { type Digest, isDigest } from '#shared/digest/digest.ts';
import { type EntryType, LAYER_LIMITS, LayerError } from '#shared/layer/layer-index.ts';
import { TOC_TYPE_NAMES, tocTypeOf } from './toc-types.ts';

/** A chunk of a file as a TOC lists it: where its bytes begin in the blob and what they hash to. */
export interface TocChunk {
  readonly fileOffset: number;
  readonly length: number;
  /** Start of the gzip member or zstd frame that holds it, from the start of the blob. */
  readonly blobOffset: number;
  /** End of that member or frame, where the TOC says it. */
  readonly blobEnd: number | undefined;
  /** Decoded bytes of the member before it. */
  readonly innerOffset: number;
  readonly digest: Digest;
}

/** The raw shape of an entry: every field is optional and of any type until it was looked at. */
export type RawEntry = Readonly<Record<string, unknown>>;

export interface RawToc {
  readonly version: number;
  readonly entries: readonly RawEntry[];
}

const SUPPORTED_VERSION = 1;

export function malformed(message: string): LayerError {
  return new LayerError('malformed', message);
}

/**
 * @param layer names the layer in messages.
 * @throws LayerError when the JSON is none, of another version, or claims more entries than a layer may have.
 */
export function parseToc(json: Uint8Array, layer: Digest): RawToc {
  let value: unknown;
  try {
    value = JSON.parse(Buffer.from(json.buffer, json.byteOffset, json.byteLength).toString('utf8'));
  } catch (cause) {
    throw new LayerError('malformed', `Cannot read the TOC of layer ${layer}: it is not JSON`, { cause });
  }
  const toc = value as { version?: unknown; entries?: unknown } | null;
  if (toc === null || typeof toc !== 'object' || !Array.isArray(toc.entries)) {
    throw malformed(`Cannot read the TOC of layer ${layer}: it has no list of entries`);
  }
  if (toc.version !== SUPPORTED_VERSION) {
    const version = shown(toc.version);
    throw new LayerError(
      'unsupported',
      `Cannot read the TOC of layer ${layer}: version ${version}, only ${SUPPORTED_VERSION} is known`,
    );
  }
  if (toc.entries.length > LAYER_LIMITS.entries) {
    throw new LayerError(
      'too-large',
      `Refused the TOC of layer ${layer}: ${toc.entries.length} entries, at most ${LAYER_LIMITS.entries}`,
    );
  }
  return { version: SUPPORTED_VERSION, entries: toc.entries as readonly RawEntry[] };
}

/** An empty, `.` or `..` part anywhere. */
const UNCLEAN_PART = /(?:^|\/)\.{0,2}(?:\/|$)/;

/**
 * The path without leading `/` and `./`, trailing slash and empty or `.` parts.
 *
 * @throws LayerError where a part is `..`, or too long, or the path has a NUL.
 */
export function cleanTocPath(name: string): Buffer {
  let path = name.endsWith('/') ? name.slice(0, -1) : name;
  if (UNCLEAN_PART.test(path)) {
    const parts = path.split('/').filter((part) => part !== '' && part !== '.');
    if (parts.includes('..')) {
      throw new LayerError('escapes', `the path ${quote(name)} has a ".." part`);
    }
    path = parts.join('/');
  }
  if (path.includes('\0')) throw malformed(`the path ${quote(name)} has a NUL byte`);
  const bytes = Buffer.from(path);
  if (bytes.length > LAYER_LIMITS.pathBytes) {
    throw new LayerError('too-large', `a path of ${bytes.length} bytes, at most ${LAYER_LIMITS.pathBytes}`);
  }
  return bytes;
}

export function quote(text: string): string {
  return JSON.stringify(text.length > 100 ? `${text.slice(0, 100)}...` : text);
}

/** A value of any kind, for a message; of objects only that, as they may be nested without end. */
export function shown(value: unknown): string {
  if (typeof value === 'object' && value !== null) return Array.isArray(value) ? 'a list' : 'an object';
  return typeof value === 'string' ? quote(value) : String(value);
}

/** An absent field is 0, as Go's `omitempty` writes it. */
export function integer(entry: RawEntry, field: string, max: number): number {
  const value = entry[field];
  if (value === undefined || value === null) return 0;
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 0 || value > max) {
    throw malformed(`its ${field} is ${shown(value)}, not an integer of 0 to ${max}`);
  }
  return value;
}

export function text(entry: RawEntry, field: string): string {
  const value = entry[field];
  if (value === undefined || value === null) return '';
  if (typeof value !== 'string') throw malformed(`its ${field} is not a string`);
  return value;
}

/** undefined where absent or empty. */
export function digestField(entry: RawEntry, field: string): Digest | undefined {
  const value = entry[field];
  if (value === undefined || value === null || value === '') return undefined;
  if (!isDigest(value)) throw malformed(`its ${field} is not "sha256:" and 64 hex digits`);
  return value;
}

export function entryType(entry: RawEntry): EntryType {
  const type = text(entry, 'type');
  const known = tocTypeOf(type);
  if (known === undefined) {
    throw new LayerError('unsupported', `its type is ${quote(type)}, which is none of ${TOC_TYPE_NAMES.join(' ')}`);
  }
  return known;
}

const RFC3339 = /^(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9})\d*)?(?:[Zz]|([+-])(\d\d):(\d\d))$/;
/** Go's zero time: what a producer writes that has no time. */
const NO_TIME_YEAR = 1;

/** RFC 3339 to seconds and nanoseconds; no time, and Go's zero time, are the epoch. */
export function parseModtime(value: string): { readonly seconds: number; readonly nanoseconds: number } {
  if (value === '') return { seconds: 0, nanoseconds: 0 };
  const match = RFC3339.exec(value);
  if (match === null) throw malformed(`its modtime ${quote(value)} is not an RFC 3339 time`);
  const [, year, month, day, hour, minute, second, fraction, sign, offsetHours, offsetMinutes] = match;
  if (Number(year) <= NO_TIME_YEAR) return { seconds: 0, nanoseconds: 0 };
  const date = new Date(0);
  date.setUTCFullYear(Number(year), Number(month) - 1, Number(day));
  date.setUTCHours(Number(hour), Number(minute), Number(second));
  const offset = sign === undefined ? 0 : (Number(offsetHours) * 60 + Number(offsetMinutes)) * 60;
  return {
    seconds: date.getTime() / 1000 - (sign === '-' ? -offset : offset),
    nanoseconds: fraction === undefined ? 0 : Number(fraction.padEnd(9, '0')),
  };
}

/** Values are base64; in the order of the TOC. */
export function parseXattrs(entry: RawEntry): readonly (readonly [Buffer, Buffer])[] {
  const value = entry['xattrs'];
  if (value === undefined || value === null) return NO_XATTRS;
  if (typeof value !== 'object' || Array.isArray(value)) throw malformed('its xattrs are not an object');
  const xattrs: (readonly [Buffer, Buffer])[] = [];
  let bytes = 0;
  for (const [name, encoded] of Object.entries(value)) {
    if (typeof encoded !== 'string') throw malformed(`its xattr ${quote(name)} is not base64`);
    const decoded = Buffer.from(encoded, 'base64');
    const key = Buffer.from(name);
    if (key.length === 0 || key.includes(0))
      throw malformed(`its xattr name ${quote(name)} is empty or has a NUL byte`);
    bytes += key.length + decoded.length;
    if (bytes > LAYER_LIMITS.xattrBytes) {
      throw new LayerError('too-large', `its xattrs have more than ${LAYER_LIMITS.xattrBytes} bytes`);
    }
    xattrs.push([key, decoded]);
  }
  return xattrs;
}

const NO_XATTRS: readonly (readonly [Buffer, Buffer])[] = [];
