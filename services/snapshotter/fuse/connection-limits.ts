import { execFile } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { promisify } from 'node:util';
import { readMountTable } from '../mounts/mount-table.ts';
import { BACKGROUND_LIMITS, READ_AHEAD_BYTES } from './fuse-protocol.ts';

const FUSECTL = '/sys/fs/fuse/connections';
const execute = promisify(execFile);

/**
 * The limits that the device transport asks for at INIT. libfuse leaves the kernel's: 12 requests in the background, too few for parallel
 * misses over a slow link, and reading ahead. Without this all works, only slower: nothing fails.
 *
 * @param directory A FUSE mount.
 */
export async function setConnectionLimits(directory: string): Promise<void> {
  const table = await readMountTable();
  const device = table.findLast((mount) => mount.target === directory && mount.type.startsWith('fuse'))?.device;
  if (device === undefined) return;
  const mountedHere = !table.some((mount) => mount.target === FUSECTL);
  if (mountedHere) await execute('mount', ['-t', 'fusectl', 'fusectl', FUSECTL]).catch(() => {});
  const connection = `${FUSECTL}/${device.split(':')[1] ?? ''}`;
  await writeFile(`${connection}/max_background`, String(BACKGROUND_LIMITS.most)).catch(() => {});
  await writeFile(`${connection}/congestion_threshold`, String(BACKGROUND_LIMITS.congested)).catch(() => {});
  await writeFile(`/sys/class/bdi/${device}/read_ahead_kb`, String(READ_AHEAD_BYTES / 1024)).catch(() => {});
  if (mountedHere) await execute('umount', [FUSECTL]).catch(() => {});
}
