/**
 * The last bytes of an eStargz blob: an empty gzip member whose extra field says where the TOC is.
 *
 * | bytes | what |
 * |---|---|
 * | 10 | gzip header `1f 8b 08 04 00000000 00 ff` (FEXTRA) |
 * | 2 | XLEN, little-endian |
 * | XLEN | extra field, below |
 * | 5 | empty stored block `01 0000 ffff` |
 * | 8 | CRC 0, size 0 |
 *
 * | variant | extra | XLEN | sum |
 * |---|---|---|---|
 * | eStargz | `SG`, LE16 22, `%016xSTARGZ` | 26 | 51 |
 * | legacy stargz (CRFS) | `%016xSTARGZ` | 22 | 47 |
 * | external TOC | `SG`, LE16 17, `STARGZEXTERNALTOC` | 21 | 46 |
 *
 * https://github.com/containerd/stargz-snapshotter/blob/main/docs/estargz.md
 */
export type EstargzFooter =
  | { readonly kind: 'estargz' | 'legacy'; readonly tocOffset: number; readonly footerBytes: number }
  | { readonly kind: 'external'; readonly footerBytes: number };

const HEADER = Buffer.from('1f8b08040000000000ff', 'hex');
const TRAILER = Buffer.from('010000ffff0000000000000000', 'hex');
const FRAME_BYTES = HEADER.length + 2 + TRAILER.length;
const MAGIC = 'STARGZ';
const EXTERNAL_MAGIC = 'STARGZEXTERNALTOC';

export const ESTARGZ_FOOTER_BYTES = 51;
const LEGACY_FOOTER_BYTES = 47;
const EXTERNAL_FOOTER_BYTES = 46;

function subfield(payload: string): Buffer {
  const header = Buffer.from('SG\0\0', 'latin1');
  header.writeUInt16LE(payload.length, 2);
  return Buffer.concat([header, Buffer.from(payload, 'latin1')]);
}

function extraOf(tail: Buffer, footerBytes: number): Buffer | undefined {
  const start = tail.length - footerBytes;
  if (start < 0) return undefined;
  const footer = tail.subarray(start);
  const xlen = footerBytes - FRAME_BYTES;
  // OS (byte 9) and MTIME are the producer's; the rest of the header is fixed.
  if (footer.readUInt32LE(0) !== HEADER.readUInt32LE(0) || footer.readUInt16LE(10) !== xlen) return undefined;
  if (!footer.subarray(12 + xlen).equals(TRAILER)) return undefined;
  return footer.subarray(12, 12 + xlen);
}

function offsetIn(field: string): number | undefined {
  if (field.length !== 22 || !field.endsWith(MAGIC)) return undefined;
  const hex = field.slice(0, 16);
  if (!/^[0-9a-f]{16}$/i.test(hex)) return undefined;
  const offset = Number.parseInt(hex, 16);
  return Number.isSafeInteger(offset) ? offset : undefined;
}

/** @param tail the blob's last bytes, 51 of them at least. undefined where they are no footer. */
export function parseEstargzFooter(tail: Buffer): EstargzFooter | undefined {
  const current = extraOf(tail, ESTARGZ_FOOTER_BYTES);
  if (current !== undefined && current.toString('latin1', 0, 4) === 'SG\x16\0') {
    const tocOffset = offsetIn(current.toString('latin1', 4));
    if (tocOffset !== undefined) return { kind: 'estargz', tocOffset, footerBytes: ESTARGZ_FOOTER_BYTES };
  }
  const legacy = extraOf(tail, LEGACY_FOOTER_BYTES);
  if (legacy !== undefined) {
    const tocOffset = offsetIn(legacy.toString('latin1'));
    if (tocOffset !== undefined) return { kind: 'legacy', tocOffset, footerBytes: LEGACY_FOOTER_BYTES };
  }
  const external = extraOf(tail, EXTERNAL_FOOTER_BYTES);
  if (external?.equals(subfield(EXTERNAL_MAGIC)) === true) {
    return { kind: 'external', footerBytes: EXTERNAL_FOOTER_BYTES };
  }
  return undefined;
}

/** The 51 bytes that end an eStargz blob. */
export function estargzFooter(tocOffset: number): Buffer {
  return footer(subfield(`${tocOffset.toString(16).padStart(16, '0')}${MAGIC}`));
}

/** The 46 bytes that end an eStargz blob whose TOC lies outside of it. */
export function externalTocFooter(): Buffer {
  return footer(subfield(EXTERNAL_MAGIC));
}

function footer(extra: Buffer): Buffer {
  const xlen = Buffer.alloc(2);
  xlen.writeUInt16LE(extra.length);
  return Buffer.concat([HEADER, xlen, extra, TRAILER]);
}
