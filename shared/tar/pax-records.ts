import { LayerError } from '#shared/layer/layer-index.ts';

/**
 * Records of one PAX extended header: `LENGTH KEY=VALUE\n`, LENGTH in decimal and counting itself. Keys are taken as
 * latin1 so that no byte of a name is lost, values stay bytes. GNU sparse 0.0 repeats its keys: those come in `sparse`.
 */
export interface PaxRecords {
  readonly values: ReadonlyMap<string, Buffer>;
  /** Offset and length pairs of GNU sparse 0.0, as text and in order. */
  readonly sparse: readonly string[];
}

const XATTR = 'SCHILY.xattr.';

/** @throws LayerError `malformed` */
export function parsePaxRecords(body: Buffer): PaxRecords {
  const values = new Map<string, Buffer>();
  const sparse: string[] = [];
  for (let at = 0; at < body.length; ) {
    // Writers pad with NULs now and then.
    if (body[at] === 0) break;
    let length = 0;
    let i = at;
    for (; i < body.length && i < at + 8; i++) {
      const digit = body[i] ?? 0;
      if (digit < 0x30 || digit > 0x39) break;
      length = length * 10 + (digit - 0x30);
    }
    const end = at + length;
    const equals = body.indexOf(0x3d, i);
    if (i === at || body[i] !== 0x20 || end > body.length || equals < 0 || equals >= end || body[end - 1] !== 0x0a) {
      throw new LayerError(
        'malformed',
        `Cannot read a PAX header: record at byte ${at} of ${body.length} is malformed`,
      );
    }
    const key = body.toString('latin1', i + 1, equals);
    const value = body.subarray(equals + 1, end - 1);
    if (key === '' || key.includes('\0')) {
      throw new LayerError('malformed', `Cannot read a PAX header: record at byte ${at} has no proper key`);
    }
    if (key === 'GNU.sparse.offset' || key === 'GNU.sparse.numbytes') sparse.push(value.toString('latin1'));
    else values.set(key, value);
    at = end;
  }
  return { values, sparse };
}

/** The records' xattrs as bytes, in the order of the records; values are not copies. */
export function paxXattrs(records: PaxRecords): (readonly [Buffer, Buffer])[] {
  const xattrs: (readonly [Buffer, Buffer])[] = [];
  for (const [key, value] of records.values) {
    if (!key.startsWith(XATTR) || key.length === XATTR.length) continue;
    xattrs.push([Buffer.from(key.slice(XATTR.length), 'latin1'), value]);
  }
  return xattrs;
}
