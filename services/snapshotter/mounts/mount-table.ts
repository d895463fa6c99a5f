import { readFile } from 'node:fs/promises';

/** One line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)), octal escapes resolved. */
export interface MountInfo {
  readonly id: number;
  readonly parentId: number;
  /** `major:minor` of the file system; for FUSE the minor is the connection's number. */
  readonly device: string;
  /** The folder of the file system that is seen at `target`. */
  readonly root: string;
  readonly target: string;
  readonly options: string;
  readonly type: string;
  /** A path, a device such as `/dev/loop3`, or what the file system calls itself. */
  readonly source: string;
  readonly superOptions: string;
}

/** In the order of mounting: of two mounts on one target the later one is seen. */
export async function readMountTable(signal?: AbortSignal): Promise<readonly MountInfo[]> {
  return parseMountTable(
    await readFile('/proc/self/mountinfo', signal ? { encoding: 'utf8', signal } : { encoding: 'utf8' }),
  );
}

/** Lines that do not have the form of a mount are left out. */
export function parseMountTable(text: string): readonly MountInfo[] {
  const mounts: MountInfo[] = [];
  for (const line of text.split('\n')) {
    const fields = line.split(' ');
    // Optional fields (propagation) end with a lone hyphen; no field before it can be one.
    const dash = fields.indexOf('-', 6);
    const [id, parentId, device, root, target, options] = fields;
    const [type, source, superOptions] = dash < 0 ? [] : fields.slice(dash + 1);
    if (!id || !parentId || !device || root === undefined || target === undefined || type === undefined) continue;
    mounts.push({
      id: Number(id),
      parentId: Number(parentId),
      device,
      root: unescape(root),
      target: unescape(target),
      options: options ?? '',
      type,
      source: unescape(source ?? ''),
      superOptions: unescape(superOptions ?? ''),
    });
  }
  return mounts;
}

/** The file that a mount reads from: its source, and for a loop device the file behind that. */
export async function backingFile(mount: MountInfo): Promise<string> {
  const loop = /^\/dev\/(loop\d+)$/.exec(mount.source)?.[1];
  if (loop === undefined) return mount.source;
  return (await readFile(`/sys/block/${loop}/loop/backing_file`, 'utf8').catch(() => mount.source)).trim();
}

/** Is `path` the folder or below it? Both absolute and clean. */
export function isWithin(path: string, folder: string): boolean {
  return path === folder || path.startsWith(folder.endsWith('/') ? folder : `${folder}/`);
}

/** The kernel writes space, tab, newline, backslash and `#` as `\ooo`: bytes, so names that are not ASCII stay whole. */
function unescape(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
}
