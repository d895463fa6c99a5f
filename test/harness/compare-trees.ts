import { join } from 'node:path';
import { runTool } from '#test/images/tool.ts';
import type { TreeEntry } from './walk-tree.ts';

/** Differences shown; the rest is counted. */
const SHOWN = 40;
const VALUE_CHARS = 200;

/** Files of eStargz's own, which an ordinary unpack leaves in the rootfs. */
export const TOC_FILES: ReadonlySet<string> = new Set([
  '.prefetch.landmark',
  '.no.prefetch.landmark',
  'stargz.index.json',
]);

export interface CompareOptions {
  /** The expected tree was unpacked from eStargz layers by a program that does not know the format. */
  readonly ignoreTocFiles?: boolean;
  /** Paths whose modification time is not a property of the image, such as directories that its layers only imply. */
  readonly ignoreMtime?: (path: string) => boolean;
  /** Modification times may differ by less than a second: `ctr-remote` rounds them in its TOC. */
  readonly mtimeRounded?: boolean;
}

/** All entries of a tree, read by another process. */
export async function walkTree(root: string, signal: AbortSignal): Promise<Map<string, TreeEntry>> {
  const out = await runTool(
    process.execPath,
    ['--disable-warning=ExperimentalWarning', join(import.meta.dirname, 'walk-tree.ts'), root],
    signal,
  );
  const entries = new Map<string, TreeEntry>();
  for (const line of out.split('\n')) {
    if (line === '') continue;
    const entry = JSON.parse(line) as TreeEntry;
    entries.set(entry.path, entry);
  }
  return entries;
}

/**
 * What differs between two trees: path, type, mode, owner, size, modification time, device, link target, hard-link groups,
 * xattrs and content. Empty when they are equal.
 */
export async function compareTrees(
  expected: string,
  actual: string,
  signal: AbortSignal,
  options: CompareOptions = {},
): Promise<string[]> {
  const [left, right] = await Promise.all([walkTree(expected, signal), walkTree(actual, signal)]);
  return differences(left, right, options);
}

export function differences(
  expected: ReadonlyMap<string, TreeEntry>,
  actual: ReadonlyMap<string, TreeEntry>,
  options: CompareOptions = {},
): string[] {
  const found: string[] = [];
  for (const [path, left] of expected) {
    const right = actual.get(path);
    if (right === undefined) {
      if (options.ignoreTocFiles === true && TOC_FILES.has(path)) continue;
      found.push(`${path}: missing`);
      continue;
    }
    for (const key of KEYS) {
      // containerd gives the root the time of unpacking, whatever the layers say.
      if (key === 'mtimeNs' && (path === '.' || options.ignoreMtime?.(path) === true)) continue;
      if (key === 'mtimeNs' && options.mtimeRounded === true && isWithinASecond(left, right)) continue;
      const [a, b] = [JSON.stringify(left[key]), JSON.stringify(right[key])];
      if (a !== b) found.push(`${path}: ${key} is ${b?.slice(0, VALUE_CHARS)}, not ${a?.slice(0, VALUE_CHARS)}`);
    }
  }
  for (const path of actual.keys()) if (!expected.has(path)) found.push(`${path}: too much`);
  return found.length <= SHOWN ? found : [...found.slice(0, SHOWN), `and ${found.length - SHOWN} more`];
}

function isWithinASecond(left: TreeEntry, right: TreeEntry): boolean {
  const difference = BigInt(left.mtimeNs) - BigInt(right.mtimeNs);
  return difference > -1_000_000_000n && difference < 1_000_000_000n;
}

const KEYS = ['type', 'mode', 'uid', 'gid', 'mtimeNs', 'size', 'rdev', 'target', 'linkOf', 'xattrs', 'sha256'] as const;
