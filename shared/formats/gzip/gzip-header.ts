/** Optional parts of a gzip header, RFC 1952 section 2.3.1. */
const FHCRC = 2;
const FEXTRA = 4;
const FNAME = 8;
const FCOMMENT = 16;
const RESERVED = 0xe0;
const FIXED_BYTES = 10;

/**
 * Length of the gzip header that `bytes` begins with; `undefined` where more bytes are needed, `invalid` where it is none.
 *
 * | offset | what |
 * |---|---|
 * | 0 | `1f 8b`, method 8, flags |
 * | 4 | time (4), extra flags, system |
 * | 10 | FEXTRA: LE16 length and so many bytes; FNAME, FCOMMENT: up to a NUL each; FHCRC: 2 |
 */
export function gzipHeaderLength(bytes: Uint8Array): number | undefined | 'invalid' {
  if (bytes.length >= 1 && bytes[0] !== 0x1f) return 'invalid';
  if (bytes.length >= 2 && bytes[1] !== 0x8b) return 'invalid';
  if (bytes.length < FIXED_BYTES) return undefined;
  const flags = bytes[3] ?? 0;
  if (bytes[2] !== 8 || (flags & RESERVED) !== 0) return 'invalid';
  let at = FIXED_BYTES;
  if ((flags & FEXTRA) !== 0) {
    if (bytes.length < at + 2) return undefined;
    at += 2 + (bytes[at] ?? 0) + ((bytes[at + 1] ?? 0) << 8);
  }
  for (const flag of [FNAME, FCOMMENT]) {
    if ((flags & flag) === 0) continue;
    const end = at < bytes.length ? bytes.indexOf(0, at) : -1;
    if (end < 0) return undefined;
    at = end + 1;
  }
  if ((flags & FHCRC) !== 0) at += 2;
  return at <= bytes.length ? at : undefined;
}
