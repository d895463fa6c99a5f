import { LAYER_LIMITS, LayerError } from '#shared/layer/layer-index.ts';

const SLASH = 0x2f;
const DOT = 0x2e;

/**
 * The path as a LayerEntry has it: relative, no empty, `.` or `..` part; the root is empty. `..` is taken lexically, as
 * containerd does. The result never shares memory with `path`.
 *
 * @throws LayerError `escapes` when `..` leaves the root, `malformed` on a NUL, `too-large` past PATH_MAX.
 */
export function cleanPath(path: Buffer): Buffer {
  if (path.length > LAYER_LIMITS.pathBytes) {
    throw new LayerError('too-large', `Cannot take a path of ${path.length} bytes: ${shown(path)}...`);
  }
  if (path.includes(0)) throw new LayerError('malformed', `Cannot take a path with a NUL in it: ${shown(path)}`);
  if (isClean(path)) return Buffer.from(path);
  const parts: Buffer[] = [];
  for (let at = 0; at < path.length; ) {
    let end = path.indexOf(SLASH, at);
    if (end < 0) end = path.length;
    const part = path.subarray(at, end);
    at = end + 1;
    if (part.length === 0 || (part.length === 1 && part[0] === DOT)) continue;
    if (part.length === 2 && part[0] === DOT && part[1] === DOT) {
      if (parts.pop() === undefined) {
        throw new LayerError('escapes', `Cannot take the path ${shown(path)}: it leaves the root of the layer`);
      }
      continue;
    }
    parts.push(part);
  }
  const clean = Buffer.alloc(parts.reduce((sum, part) => sum + part.length + 1, -1 + (parts.length === 0 ? 1 : 0)));
  let at = 0;
  for (const part of parts) {
    if (at > 0) clean[at++] = SLASH;
    at += part.copy(clean, at);
  }
  return clean;
}

function isClean(path: Buffer): boolean {
  let start = 0;
  for (let i = 0; i <= path.length; i++) {
    if (i < path.length && path[i] !== SLASH) continue;
    const length = i - start;
    if (length === 0) return path.length === 0;
    if (path[start] === DOT && (length === 1 || (length === 2 && path[start + 1] === DOT))) return false;
    start = i + 1;
  }
  return true;
}

function shown(path: Buffer): string {
  return JSON.stringify(path.subarray(0, 200).toString('utf8'));
}
