import { execFile } from 'node:child_process';
import Fuse from 'fuse-native';
import { setConnectionLimits } from './connection-limits.ts';
import { ERRNO, MAX_READ_BYTES } from './fuse-protocol.ts';
import { FUSE_NAME } from './device-mount.ts';
import type { FuseEvents, FuseSession } from './fuse-session.ts';
import type { LayerFile, LayerFiles } from './layer-files.ts';
import { ReplyBuffers } from './reply-buffers.ts';

export interface NativeSessionOptions {
  /** An existing folder on which nothing is mounted. */
  readonly directory: string;
  readonly files: LayerFiles;
  readonly events: FuseEvents;
}

/** `fuse-native` cannot invalidate what the kernel remembers: names and sizes are asked for again after this. */
const VALID_SECONDS = 1;
/** Blocks of this size keep `fuse-native`'s 32-bit counts right up to 256 TiB. */
const STATFS_BLOCK_BYTES = 64 * 1024;
const EPOCH = new Date(0);

/**
 * Serves the flat folder through `fuse-native` (libfuse 2.9). The mount lives and dies with this process: where the kernel
 * cannot resend requests there is nothing to hand on.
 */
export async function openNativeSession(options: NativeSessionOptions, signal: AbortSignal): Promise<FuseSession> {
  signal.throwIfAborted();
  const { directory, files, events } = options;
  const stats = { requests: 0, reads: 0, bytes: 0, errors: 0, waiting: 0 };
  const buffers = new ReplyBuffers();
  const closing = new AbortController();
  const closed = Promise.withResolvers<void>();
  const find = (path: string): LayerFile | undefined => files.byName(path.slice(1));

  const serve = async (file: LayerFile, buffer: Buffer, length: number, position: number): Promise<number> => {
    const wanted = Math.min(length, Math.max(0, file.sizeBytes - position));
    stats.reads++;
    if (wanted === 0) return 0;
    stats.waiting++;
    try {
      // Not into libfuse's own buffer: that is gone after an error, while a read of the disk may still write to it.
      const own = buffers.take(wanted);
      const data = await files.read(file, position, wanted, closing.signal, own);
      if (data.length > wanted) throw new RangeError(`${data.length} bytes in answer to a read of ${wanted}`);
      buffer.set(data);
      buffers.give(own);
      stats.bytes += data.length;
      return data.length;
    } catch (error) {
      stats.errors++;
      if (!closing.signal.aborted) events.readFailed(file, position, length, error);
      return -ERRNO.EIO;
    } finally {
      stats.waiting--;
    }
  };

  const fuse = new Fuse(
    directory,
    {
      readdir(path, done) {
        stats.requests++;
        if (path !== '/') return done(-ERRNO.ENOTDIR);
        done(0, ['.', '..', ...files.list().map((file) => file.name)]);
      },
      getattr(path, done) {
        stats.requests++;
        const file = find(path);
        if (path !== '/' && file === undefined) return done(-ERRNO.ENOENT);
        done(0, {
          mode: file ? 0o100400 : 0o40500,
          size: file?.sizeBytes ?? 4096,
          nlink: file ? 1 : 2,
          uid: 0,
          gid: 0,
          mtime: EPOCH,
          atime: EPOCH,
          ctime: EPOCH,
        });
      },
      open(path, flags, done) {
        stats.requests++;
        if ((flags & 3) !== 0) return done(-ERRNO.EROFS);
        done(find(path) ? 0 : -ERRNO.ENOENT, 0);
      },
      read(path, _fd, buffer, length, position, done) {
        stats.requests++;
        const file = find(path);
        if (file === undefined) {
          stats.errors++;
          return done(-ERRNO.EIO);
        }
        void serve(file, buffer, length, position).then(done);
      },
      statfs(_path, done) {
        stats.requests++;
        const { totalBytes, freeBytes } = events.diskSpace();
        const free = Math.floor(freeBytes / STATFS_BLOCK_BYTES);
        done(0, {
          bsize: STATFS_BLOCK_BYTES,
          frsize: STATFS_BLOCK_BYTES,
          blocks: Math.floor(totalBytes / STATFS_BLOCK_BYTES),
          bfree: free,
          bavail: free,
          files: files.list().length,
          namemax: 255,
        });
      },
    },
    {
      // A read may wait for a slow registry; the scheduler bounds it, not a timer here.
      timeout: false,
      allowOther: true,
      defaultPermissions: true,
      fsname: FUSE_NAME,
      subtype: FUSE_NAME,
      maxRead: MAX_READ_BYTES,
      // Pages stay cached over opens while the size is the same.
      autoCache: true,
      entryTimeout: VALID_SECONDS,
      attrTimeout: VALID_SECONDS,
    },
  );
  // The same without the package `fuse`; lazily, since EROFS mounts may still hold files of it.
  Fuse.unmount = (target, done) => void execFile('umount', ['-l', target], (error) => done(error));
  await new Promise<void>((resolve, reject) => {
    fuse.mount((error) => (error ? reject(error) : resolve()));
  });
  await setConnectionLimits(directory);

  return {
    transport: 'native',
    directory,
    closed: closed.promise,
    stats: () => ({ ...stats }),
    async invalidate() {
      await Promise.resolve();
    },
    async close() {
      if (!closing.signal.aborted) {
        closing.abort();
        await new Promise<void>((resolve) => fuse.unmount(() => resolve()));
      }
      closed.resolve();
    },
  };
}
