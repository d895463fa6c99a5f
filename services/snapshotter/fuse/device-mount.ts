import { spawn } from 'node:child_process';
import { open, type FileHandle } from 'node:fs/promises';

/** Also the file system's type in the mount table: `fuse.kindling`. */
export const FUSE_NAME = 'kindling';
export const FUSE_TYPE = `fuse.${FUSE_NAME}`;
/** mount(8) answers at once: it only hands the descriptor to the kernel. */
const MOUNT_TIMEOUT_MS = 30_000;

export class DeviceMountError extends Error {
  override readonly name = 'DeviceMountError';
  readonly code: 'no-device' | 'refused';
  constructor(code: DeviceMountError['code'], message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/**
 * Opens `/dev/fuse` and mounts it on `directory`, an existing folder. The descriptor is the session: it may be inherited by any
 * number of processes, and the mount is dead when the last one closes it. No code of ours runs in the kernel's way: mount(8)
 * inherits the descriptor as its fd 3.
 */
export async function mountDevice(directory: string, signal?: AbortSignal): Promise<FileHandle> {
  signal?.throwIfAborted();
  const device = await open('/dev/fuse', 'r+').catch((cause: unknown) => {
    throw new DeviceMountError('no-device', 'Cannot open /dev/fuse: load the module fuse and run as root', { cause });
  });
  const options = [
    'fd=3',
    'rootmode=40000',
    'user_id=0',
    'group_id=0',
    'allow_other',
    'default_permissions',
    'max_read=1048576',
  ].join(',');
  try {
    const child = spawn('mount', ['-i', '-t', FUSE_TYPE, '-o', options, FUSE_NAME, directory], {
      stdio: ['ignore', 'ignore', 'pipe', device.fd],
      timeout: MOUNT_TIMEOUT_MS,
    });
    let said = '';
    child.stderr?.setEncoding('utf8').on('data', (text: string) => (said = (said + text).slice(0, 2000)));
    const code = await new Promise<number | null>((resolve, reject) => {
      child.once('error', reject);
      child.once('close', resolve);
    });
    if (code !== 0) throw new DeviceMountError('refused', `Cannot mount ${FUSE_TYPE} on ${directory}: ${said.trim()}`);
    return device;
  } catch (error) {
    await device.close();
    throw error;
  }
}
