import { existsSync } from 'node:fs';
import { readFile, readdir, readlink } from 'node:fs/promises';

/** Something that a test made and did not take away again. */
export type Leak =
  | { readonly kind: 'process'; readonly pid: number; readonly what: string }
  | { readonly kind: 'mount'; readonly path: string; readonly what: string }
  | { readonly kind: 'loop device'; readonly path: string; readonly what: string }
  | { readonly kind: 'network namespace'; readonly path: string; readonly what: string };

type MountLeak = Extract<Leak, { kind: 'mount' }>;

export interface LeakScope {
  /** `NAME=value` that every process of the test inherits in its environment. */
  readonly marker: string;
  /** Mounts and loop files below this folder belong to the test. */
  readonly folder: string;
  /** Names in /run/netns that were there before. */
  readonly namespacesBefore: ReadonlySet<string>;
}

export async function networkNamespaces(): Promise<Set<string>> {
  return new Set(await readdir('/run/netns').catch(() => []));
}

/** What is left of a test: processes by their environment, mounts and loop devices by folder. */
export async function findLeaks(scope: LeakScope): Promise<Leak[]> {
  return [
    ...(await leakedProcesses(scope.marker)),
    ...(await leakedMounts(scope.folder)),
    ...(await leakedLoops(scope.folder)),
    ...[...(await networkNamespaces())]
      .filter((name) => !scope.namespacesBefore.has(name) && !isOwned(name))
      .map((name): Leak => ({ kind: 'network namespace', path: `/run/netns/${name}`, what: name })),
  ];
}

/** `test/cluster` names its network namespaces after the process that will remove them. */
export function ownerOf(namespace: string): number | undefined {
  const owner = /^kc(\d+)(-|$)/.exec(namespace)?.[1];
  return owner === undefined ? undefined : Number(owner);
}

/** Of another run of tests on this machine. */
function isOwned(namespace: string): boolean {
  const owner = ownerOf(namespace);
  return owner !== undefined && existsSync(`/proc/${owner}`);
}

async function leakedProcesses(marker: string): Promise<Leak[]> {
  const leaks: Leak[] = [];
  for (const entry of await readdir('/proc')) {
    const pid = Number(entry);
    if (!Number.isInteger(pid) || pid === process.pid) continue;
    // Gone in between, a kernel thread, or not ours to look at.
    const environment = await readFile(`/proc/${pid}/environ`, 'latin1').catch(() => '');
    if (!environment.split('\0').includes(marker)) continue;
    const status = await readFile(`/proc/${pid}/status`, 'latin1').catch(() => '');
    if (/^State:\s+Z/m.test(status) || status === '') continue;
    const command = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
    const what = command.split('\0').join(' ').trim().slice(0, 200);
    leaks.push({ kind: 'process', pid, what: what || (await readlink(`/proc/${pid}/exe`).catch(() => '?')) });
  }
  return leaks;
}

/** Mounts below the folder, the last mounted first: the order in which they can be taken away. */
export async function leakedMounts(folder: string): Promise<MountLeak[]> {
  const lines = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n');
  const leaks: MountLeak[] = [];
  for (const line of lines) {
    const [left = '', right = ''] = line.split(' - ');
    const path = (left.split(' ')[4] ?? '').replace(/\\(\d{3})/g, (_, octal: string) =>
      String.fromCharCode(Number.parseInt(octal, 8)),
    );
    if (path.startsWith(`${folder}/`)) leaks.push({ kind: 'mount', path, what: right.split(' ')[0] ?? '' });
  }
  return leaks.toReversed();
}

async function leakedLoops(folder: string): Promise<Leak[]> {
  const leaks: Leak[] = [];
  for (const name of await readdir('/sys/block').catch(() => [])) {
    if (!name.startsWith('loop')) continue;
    const file = (await readFile(`/sys/block/${name}/loop/backing_file`, 'utf8').catch(() => '')).trim();
    if (file.startsWith(`${folder}/`)) leaks.push({ kind: 'loop device', path: `/dev/${name}`, what: file });
  }
  return leaks;
}

export function describeLeak(leak: Leak): string {
  return leak.kind === 'process' ? `process ${leak.pid}: ${leak.what}` : `${leak.kind} ${leak.path} (${leak.what})`;
}
