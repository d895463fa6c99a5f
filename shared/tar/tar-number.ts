import { LayerError } from '#shared/layer/layer-index.ts';
import type { TarField } from './tar-header.ts';

/**
 * A numeric field of a tar header: octal digits between spaces and NULs, or, with the first bit set, a big-endian
 * two's complement number (GNU base-256). An empty field is 0.
 *
 * @throws LayerError `malformed` when it is neither or not a safe integer.
 */
export function tarNumber(block: Buffer, field: TarField, what: string): number {
  const { at, bytes: length } = field;
  const first = block[at] ?? 0;
  if (first & 0x80) return base256(block, at, length, what);
  let value = 0;
  let i = at;
  const end = at + length;
  while (i < end && (block[i] === 0x20 || block[i] === 0)) i++;
  for (; i < end; i++) {
    const digit = block[i] ?? 0;
    if (digit === 0 || digit === 0x20) break;
    if (digit < 0x30 || digit > 0x37) {
      throw new LayerError(
        'malformed',
        `Cannot read a tar header: ${what} holds byte 0x${digit.toString(16)}, not octal`,
      );
    }
    value = value * 8 + (digit - 0x30);
  }
  return safe(value, what);
}

function base256(block: Buffer, at: number, length: number, what: string): number {
  const negative = ((block[at] ?? 0) & 0x40) !== 0;
  let value = 0;
  for (let i = 0; i < length; i++) {
    let byte = block[at + i] ?? 0;
    if (negative) byte ^= 0xff;
    if (i === 0) byte &= 0x7f;
    value = value * 256 + byte;
    safe(value, what);
  }
  return negative ? -value - 1 : value;
}

function safe(value: number, what: string): number {
  if (!Number.isSafeInteger(value)) {
    throw new LayerError('malformed', `Cannot read a tar header: ${what} is beyond 2^53`);
  }
  return value;
}

/** A decimal whole number as PAX and GNU sparse maps write it. @throws LayerError `malformed` */
export function decimal(text: string, what: string): number {
  if (!/^\d{1,16}$/.test(text)) {
    throw new LayerError(
      'malformed',
      `Cannot read a tar header: ${what} is ${JSON.stringify(text.slice(0, 40))}, not a number`,
    );
  }
  return safe(Number(text), what);
}

/**
 * A PAX time: optional sign, seconds, optional fraction of any length (cut to nanoseconds). The result is normalised so
 * that nanoseconds are 0 to 999,999,999. @throws LayerError `malformed`
 */
export function paxTime(text: string): readonly [seconds: number, nanoseconds: number] {
  const [, sign, whole, fraction] = /^(-?)(\d{1,15})(?:\.(\d*))?$/.exec(text) ?? [];
  if (whole === undefined) {
    throw new LayerError(
      'malformed',
      `Cannot read a tar header: mtime ${JSON.stringify(text.slice(0, 40))} is no time`,
    );
  }
  const seconds = Number(whole);
  const nanoseconds = Number((fraction ?? '').slice(0, 9).padEnd(9, '0'));
  if (sign !== '-') return [seconds, nanoseconds];
  return nanoseconds === 0 ? [0 - seconds, 0] : [-seconds - 1, 1_000_000_000 - nanoseconds];
}
