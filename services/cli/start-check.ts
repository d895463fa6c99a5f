import { access, constants, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { AgentValues } from '#services/snapshotter/config.ts';
import { makeFolder } from './make-folder.ts';

const FUSE_DEVICE = '/dev/fuse';
const OTHERS_WRITE = 0o002;

/** This machine, as it is, cannot run a node. */
export class StartError extends Error {
  override readonly name = 'StartError';
  readonly code = 'not-ready';
}

/**
 * What would keep a node from starting, found before the keeper holds anything: it would try again and again.
 *
 * @throws StartError that says what to do
 */
export async function checkStart(
  values: Pick<AgentValues, 'dataDir' | 'socket' | 'controlSocket'>,
  fuseDevice = FUSE_DEVICE,
): Promise<void> {
  if (process.geteuid?.() !== 0) throw new StartError('Cannot start: a node mounts file systems; run this as root');
  try {
    await access(fuseDevice);
  } catch (cause) {
    throw new StartError(`Cannot start: there is no ${fuseDevice}; load its module (modprobe fuse)`, { cause });
  }
  await writable(values.dataDir, 'KINDLING_DATA_DIR');
  await ours(values.dataDir);
  await writable(dirname(values.socket), 'KINDLING_SOCKET');
  await writable(dirname(values.controlSocket), 'KINDLING_CONTROL_SOCKET');
}

async function writable(folder: string, setting: string): Promise<void> {
  try {
    await makeFolder(folder);
    // With the dot a file in its place is refused.
    await access(`${folder}/.`, constants.W_OK);
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new StartError(`Cannot start: ${setting} needs ${folder} as a folder that can be written: ${why}`, { cause });
  }
}

/** Whoever can plant files there has root follow them, and gives containers what they read. */
async function ours(folder: string): Promise<void> {
  const { uid, mode } = await stat(folder);
  if (uid === 0 && (mode & OTHERS_WRITE) === 0) return;
  throw new StartError(
    `Cannot start: ${folder} (KINDLING_DATA_DIR) ${uid === 0 ? 'can be written by everybody' : `belongs to user ${uid}`}; it has to be root's alone`,
  );
}
