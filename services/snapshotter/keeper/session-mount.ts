import { execFile } from 'node:child_process';
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { FUSE_TYPE } from '../fuse/device-mount.ts';
import { isWithin, readMountTable, type MountInfo } from '../mounts/mount-table.ts';
import { liesOn, lowerLayers, sessionUse } from '../mounts/session-users.ts';

/**
 * Takes away what a keeper that was killed has left: its FUSE mount answers nobody any more, and the EROFS mounts on it give EIO.
 * Agents that outlived it are killed. Returns what was found.
 */
export async function clearStale(folder: string): Promise<{ readonly mounts: number; readonly agents: number }> {
  const agents = await killAgents(folder);
  const images = await imageMounts(folder);
  const sessions = (await readMountTable()).filter((mount) => mount.target === folder && mount.type.startsWith('fuse'));
  for (const session of sessions) await abortConnection(session);
  for (const image of images.toReversed()) await umount(image.target, true);
  for (const session of sessions) await umount(session.target, true);
  await mkdir(folder, { recursive: true, mode: 0o700 });
  return { mounts: images.length + sessions.length, agents };
}

/** Mounts of the folder's images, with those of complete layers that lie on top of them: the last one comes off first. */
async function imageMounts(folder: string): Promise<readonly MountInfo[]> {
  const { images } = await sessionUse(folder);
  const targets = new Set(images.map(({ target }) => target));
  return (await readMountTable()).filter(({ type, target }) => type === 'erofs' && targets.has(target));
}

/** Ends every wait in the session: readers get an error at once. */
export async function abortSession(folder: string): Promise<void> {
  for (const mount of await readMountTable()) {
    if (mount.target === folder && mount.type === FUSE_TYPE) await abortConnection(mount);
  }
}

async function abortConnection(session: MountInfo): Promise<void> {
  const folder = '/sys/fs/fuse/connections';
  const abort = async () => await writeFile(`${folder}/${session.device.split(':')[1] ?? ''}/abort`, '1');
  const mounted = (await readMountTable()).some((mount) => mount.target === folder);
  // The connection may be gone, which is as good.
  if (mounted) return await abort().catch(() => {});
  await run('mount', ['-t', 'fusectl', 'fusectl', folder]).catch(() => {});
  await abort().catch(() => {});
  await umount(folder, false);
}

/**
 * Unmounts the images and then the folder.
 *
 * @returns false where something still uses it.
 */
export async function unmountSession(folder: string, lazy: boolean): Promise<boolean> {
  for (const image of (await imageMounts(folder)).toReversed()) await umount(image.target, lazy);
  const here = (await readMountTable()).some((mount) => mount.target === folder && mount.type.startsWith('fuse'));
  return !here || (await umount(folder, lazy));
}

/** Takes away the mounts below `folder` that no overlay has as a layer. */
export async function unmountIdle(folder: string): Promise<void> {
  const table = await readMountTable();
  for (const mount of table.toReversed()) {
    if (!isWithin(mount.target, folder) || mount.target === folder) continue;
    const used = table.some(
      (other) => other.type === 'overlay' && lowerLayers(other).some((layer) => liesOn(layer, mount.target)),
    );
    if (!used) await umount(mount.target, false);
  }
}

/** An agent has the folder in its environment; so have the programs that it started. */
async function killAgents(folder: string): Promise<number> {
  let killed = 0;
  for (const name of await readdir('/proc')) {
    const pid = Number(name);
    if (!Number.isInteger(pid) || pid === process.pid) continue;
    const environment = await readFile(`/proc/${pid}/environ`, 'utf8').catch(() => '');
    if (!environment.split('\0').includes(`KINDLING_KEEPER=${folder}`)) continue;
    try {
      process.kill(pid, 'SIGKILL');
      killed++;
    } catch {
      // It ended by itself.
    }
  }
  return killed;
}

/** umount(8) in a process of its own: the keeper never waits in the kernel for the session that it holds. */
async function umount(target: string, lazy: boolean): Promise<boolean> {
  return await run('umount', ['-i', '-c', ...(lazy ? ['-l'] : []), target]).then(
    () => true,
    () => false,
  );
}

async function run(command: string, args: readonly string[]): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    execFile(command, args, { timeout: 30_000 }, (error) => (error ? reject(error) : resolve()));
  });
}
