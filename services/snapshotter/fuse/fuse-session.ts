import type { LayerFile } from './layer-files.ts';

/** What statfs(2) on the folder of layer images shows: the disk that the caches are on. */
export interface DiskSpace {
  readonly totalBytes: number;
  readonly freeBytes: number;
}

/** Of both transports: what they need beside the files. */
export interface FuseEvents {
  /** Asked for each statfs; must not wait. */
  diskSpace(): DiskSpace;
  /** The kernel has a file open that we do not know (state lost): it gets EIO, and only it. Said once per inode. */
  unknownFile(inode: bigint): void;
  /** A read failed; the reader gets EIO. */
  readFailed(file: LayerFile, offset: number, length: number, error: unknown): void;
}

export interface FuseSession {
  readonly transport: 'device' | 'native';
  /** The mounted folder: its files are `<directory>/<LayerFile.name>`. */
  readonly directory: string;
  /** Settles when the kernel ended the session (unmounted or aborted) or after `close`. Never rejects. */
  readonly closed: Promise<void>;
  stats(): FuseStats;
  /** The file is gone, or another has its name: what the kernel remembers of it is dropped. */
  invalidate(file: LayerFile): Promise<void>;
  /**
   * Stops serving. `device`: the kernel keeps what is unanswered for the next agent; reads that wait in libuv's pool stay there
   * while the mount lives, so the process must then end by SIGKILL (see KeeperLink.leave). `native`: unmounts, lazily.
   */
  close(): Promise<void>;
}

/** Since the start of the session. */
export interface FuseStats {
  readonly requests: number;
  readonly reads: number;
  readonly bytes: number;
  readonly errors: number;
  /** Reads that wait for their bytes now. */
  readonly waiting: number;
}
