import { execFile } from 'node:child_process';
import type { Mount } from './gen/types/types.ts';
import type { ProcessUser } from './runtime-spec.ts';

/** Reads a file of the container's root; undefined when there is none. */
export type RootFileReader = (path: string) => Promise<string | undefined>;

/** A passwd or group file is small; what is larger is not read. */
const MAX_FILE_BYTES = 1024 * 1024;

/**
 * Resolves an image's `User` (`user[:group]`, names or numbers) against /etc/passwd and /etc/group of its root, which is
 * only read when something is not a number.
 *
 * @throws Error naming the user or group that does not exist.
 */
export async function resolveUser(text: string, readRootFile: RootFileReader): Promise<ProcessUser> {
  const [user = '', group = ''] = text.split(':', 2);
  let uid = numeric(user === '' ? '0' : user);
  let gid = numeric(group === '' ? '' : group);
  if (uid === undefined || (gid === undefined && group === '' && uid !== 0)) {
    const fields = lines(await readRootFile('/etc/passwd')).find((line) =>
      uid === undefined ? line[0] === user : line[2] === String(uid),
    );
    if (fields === undefined && uid === undefined) {
      throw new Error(`Cannot run as user ${JSON.stringify(user)}: the image's /etc/passwd does not name it`);
    }
    uid ??= numeric(fields?.[2] ?? '');
    if (group === '') gid = numeric(fields?.[3] ?? '0');
  }
  if (gid === undefined && group !== '') {
    gid = numeric(lines(await readRootFile('/etc/group')).find((line) => line[0] === group)?.[2] ?? '');
    if (gid === undefined) {
      throw new Error(`Cannot run with group ${JSON.stringify(group)}: the image's /etc/group does not name it`);
    }
  }
  if (uid === undefined)
    throw new Error(`Cannot run as user ${JSON.stringify(user)}: its ID in /etc/passwd is no number`);
  return { uid, gid: gid ?? 0, additionalGids: [gid ?? 0] };
}

function numeric(text: string): number | undefined {
  return /^\d{1,10}$/.test(text) && Number(text) < 2 ** 32 ? Number(text) : undefined;
}

function lines(file: string | undefined): string[][] {
  return (file ?? '').split('\n').map((line) => line.split(':'));
}

/**
 * Reads files through a snapshot's mounts without mounting them: top layer first. In a process of its own, because the
 * layers may be file systems that this process serves.
 */
export function snapshotFileReader(mounts: readonly Mount[], signal: AbortSignal): RootFileReader {
  const folders = mounts.flatMap((mount) => {
    if (mount.type === 'bind') return [mount.source];
    const option = (name: string): string[] =>
      mount.options.flatMap((text) => (text.startsWith(`${name}=`) ? text.slice(name.length + 1).split(':') : []));
    return [...option('upperdir'), ...option('lowerdir')];
  });
  return async (path) => {
    for (const folder of folders) {
      const text = await readInChild(folder + path, signal);
      if (text !== undefined) return text;
    }
    return undefined;
  };
}

function readInChild(path: string, signal: AbortSignal): Promise<string | undefined> {
  return new Promise((resolve) => {
    execFile('cat', ['--', path], { maxBuffer: MAX_FILE_BYTES, signal }, (error, stdout) => {
      resolve(error === null ? stdout : undefined);
    });
  });
}
