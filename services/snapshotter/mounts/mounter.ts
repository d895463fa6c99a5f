import { execFile } from 'node:child_process';
import { getSystemErrorMap } from 'node:util';
import type koffi from 'koffi';
import { backingFile, isWithin, readMountTable, type MountInfo } from './mount-table.ts';

export type MountErrorCode = 'busy' | 'not-found' | 'refused' | 'unsupported' | 'aborted' | 'failed';

export class MountError extends Error {
  override readonly name = 'MountError';
  readonly code: MountErrorCode;
  /** Name of the errno, such as `EBUSY`; undefined where mount(8) failed. */
  readonly errno: string | undefined;
  constructor(code: MountErrorCode, message: string, options?: ErrorOptions & { readonly errno?: string }) {
    super(message, options);
    this.code = code;
    this.errno = options?.errno;
  }
}

export interface ErofsMount {
  /** `file`: the kernel reads the file itself (>= 6.12). `loop`: through a loop device that goes away with the mount. */
  readonly via: 'file' | 'loop';
}

/**
 * mount(2) and umount2(2) for layer images. A mount reads the superblock through the FUSE session of this very process, so
 * no call runs on the main thread: they run on libuv's pool, at most `parallel` at a time so that the pool always has threads
 * left for the session that answers them.
 */
export interface Mounter {
  /** Mounts an EROFS image read-only. `target` is an existing folder. @throws MountError */
  mountErofs(source: string, target: string, signal: AbortSignal): Promise<ErofsMount>;
  /**
   * Any other mount, options as mount(2) takes them. @throws MountError
   */
  mount(request: MountRequest, signal: AbortSignal): Promise<void>;
  /** Takes away the topmost mount on `target`; none there is success. Lazy also while it is used. @throws MountError */
  unmount(target: string, options: { readonly lazy?: boolean }, signal: AbortSignal): Promise<void>;
  /** Mounts at or below `folder`, in the order of mounting; `source` of a loop device is the file behind it. */
  mountsWithin(folder: string, signal: AbortSignal): Promise<readonly MountInfo[]>;
}

export interface MountRequest {
  readonly source: string;
  readonly target: string;
  readonly type: string;
  /** Sum of `MOUNT_FLAGS`. */
  readonly flags: number;
  readonly data: string;
}

/** From `include/uapi/linux/mount.h`. */
export const MOUNT_FLAGS = {
  readOnly: 1,
  noSuid: 2,
  noDev: 4,
  noExec: 8,
  remount: 32,
  noAtime: 1024,
  bind: 4096,
  recursive: 16_384,
  private: 1 << 18,
} as const;

const UMOUNT_NOFOLLOW = 8;
const MNT_DETACH = 2;

/** Where a kernel refuses a regular file as EROFS's source: ENOTBLK before 6.12, EINVAL where it is built without it. */
const NEEDS_LOOP = new Set(['ENOTBLK', 'EINVAL']);

interface Syscalls {
  readonly mount: { readonly async: (...args: unknown[]) => void };
  readonly umount: { readonly async: (...args: unknown[]) => void };
  readonly errnoOfCall: () => number;
}

/** Only when they are needed: an agent that takes over finds its mounts there. */
async function loadSyscalls(): Promise<Syscalls> {
  const { default: native } = (await import('koffi')) as { readonly default: typeof koffi };
  const libc = native.load('libc.so.6');
  return {
    mount: libc.func('int mount(const char*, const char*, const char*, unsigned long, const char*)'),
    umount: libc.func('int umount2(const char*, int)'),
    errnoOfCall: () => native.errno(),
  };
}

/**
 * @param parallel Calls that may wait in the kernel at once; by default a quarter of libuv's pool.
 * @param forceLoop Never tries the file-backed mount; for tests and for layers that are stacked once more.
 */
export function createMounter(options: { readonly parallel?: number; readonly forceLoop?: boolean } = {}): Mounter {
  const parallel = options.parallel ?? Math.max(1, Math.floor(Number(process.env['UV_THREADPOOL_SIZE'] ?? 4) / 4));
  let loaded: Promise<Syscalls> | undefined;
  const syscalls = (): Promise<Syscalls> => (loaded ??= loadSyscalls());
  const turns = new Turns(parallel);
  let fileBacked = options.forceLoop !== true;

  /** Resolves with the errno's name, or undefined on success. Runs to its end: a mount cannot be called back. */
  const call = async (name: 'mount' | 'umount', args: readonly unknown[], signal: AbortSignal) => {
    signal.throwIfAborted();
    const { [name]: syscall, errnoOfCall } = await syscalls();
    await turns.enter(signal);
    try {
      return await new Promise<string | undefined>((resolve, reject) => {
        syscall.async(...args, (error: unknown, result: number) => {
          // errno is that of this call only until the callback returns.
          if (error) reject(error instanceof Error ? error : new Error(String(error)));
          else resolve(result === 0 ? undefined : errnoName(errnoOfCall()));
        });
      });
    } finally {
      turns.leave();
    }
  };

  const mount = async (request: MountRequest, signal: AbortSignal): Promise<string | undefined> => {
    const { source, target, type, flags, data } = request;
    const errno = await call('mount', [source, target, type, flags, data], signal);
    if (errno === undefined && signal.aborted) {
      // Nobody waits for it any more: leave nothing behind.
      await call('umount', [target, MNT_DETACH | UMOUNT_NOFOLLOW], new AbortController().signal);
      throw new MountError('aborted', `Mounting ${source} on ${target} was cancelled`, { cause: signal.reason });
    }
    return errno;
  };

  return {
    async mountErofs(source, target, signal) {
      if (fileBacked) {
        const flags = MOUNT_FLAGS.readOnly;
        const errno = await mount({ source, target, type: 'erofs', flags, data: '' }, signal);
        if (errno === undefined) return { via: 'file' };
        if (!NEEDS_LOOP.has(errno)) throw mountError('mount', source, target, errno);
        // EINVAL may also be a bad image: then the loop device fails too and the next image is tried as a file again.
        if (errno === 'ENOTBLK') fileBacked = false;
      }
      await mountByLoop(source, target, signal);
      return { via: 'loop' };
    },
    async mount(request, signal) {
      const errno = await mount(request, signal);
      if (errno !== undefined) throw mountError('mount', request.source, request.target, errno);
    },
    async unmount(target, { lazy = false }, signal) {
      const errno = await call('umount', [target, (lazy ? MNT_DETACH : 0) | UMOUNT_NOFOLLOW], signal);
      // EINVAL: the path is no mount point.
      if (errno === undefined || errno === 'EINVAL' || errno === 'ENOENT') return;
      throw mountError('unmount', undefined, target, errno);
    },
    async mountsWithin(folder, signal) {
      const within = (await readMountTable(signal)).filter((mount) => isWithin(mount.target, folder));
      return await Promise.all(within.map(async (mount) => ({ ...mount, source: await backingFile(mount) })));
    },
  };
}

/** mount(8) finds a free loop device, read-only and cleared by itself at the unmount. */
async function mountByLoop(source: string, target: string, signal: AbortSignal): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const args = ['-i', '-t', 'erofs', '-o', 'ro,loop', source, target];
    execFile('mount', args, { signal, timeout: 60_000 }, (error, _, stderr) => {
      if (error === null) return resolve();
      const detail = stderr.trim() || error.message;
      const code = signal.aborted ? 'aborted' : 'failed';
      reject(new MountError(code, `Cannot mount ${source} on ${target} through a loop device: ${detail}`));
    });
  });
}

function mountError(what: 'mount' | 'unmount', source: string | undefined, target: string, errno: string): MountError {
  const [code, advice] = ADVICE[errno] ?? ['failed', ''];
  const names = source === undefined ? target : `${source} on ${target}`;
  return new MountError(code, `Cannot ${what} ${names}: ${errno}${advice && `, ${advice}`}`, { errno });
}

const ADVICE: Readonly<Record<string, readonly [MountErrorCode, string]>> = {
  EBUSY: ['busy', 'it is in use'],
  ENOENT: ['not-found', 'the source or the target does not exist'],
  ENOTDIR: ['not-found', 'the target is not a folder'],
  EPERM: ['refused', 'the agent needs CAP_SYS_ADMIN: run it as root'],
  EACCES: ['refused', 'the agent needs CAP_SYS_ADMIN: run it as root'],
  ENODEV: ['unsupported', 'the kernel has no such file system: load the module erofs'],
  ENOTCONN: ['failed', 'the FUSE session that served it is gone'],
  EIO: ['failed', 'its superblock cannot be read'],
};

function errnoName(errno: number): string {
  return getSystemErrorMap().get(-errno)?.[0] ?? (errno === 15 ? 'ENOTBLK' : `errno ${errno}`);
}

/** At most `limit` holders, first come first served. */
class Turns {
  readonly #limit: number;
  readonly #waiting: (() => void)[] = [];
  #held = 0;
  constructor(limit: number) {
    this.#limit = limit;
  }
  async enter(signal: AbortSignal): Promise<void> {
    if (this.#held < this.#limit) {
      this.#held++;
      return;
    }
    await new Promise<void>((resolve, reject) => {
      const abort = () => {
        this.#waiting.splice(this.#waiting.indexOf(enter), 1);
        reject(new MountError('aborted', 'Waiting for a turn to mount was cancelled', { cause: signal.reason }));
      };
      const enter = () => {
        signal.removeEventListener('abort', abort);
        resolve();
      };
      signal.addEventListener('abort', abort, { once: true });
      this.#waiting.push(enter);
    });
  }
  leave(): void {
    const next = this.#waiting.shift();
    if (next) next();
    else this.#held--;
  }
}
