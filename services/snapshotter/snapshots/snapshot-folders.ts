import { execFile } from 'node:child_process';
import { chmod, chown, lstat, mkdir, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Usage } from './snapshot.ts';

const FOLDER_MODE = 0o700;
/** What containerd's overlayfs snapshotter gives the root of a container. */
const ROOT_MODE = 0o755;

/**
 * The folders of snapshots: `<root>/<id>/{fs,work,cover}`, all on a file system that is not ours. Paths are short, because
 * overlayfs takes the paths of all lower layers in one page.
 */
export class SnapshotFolders {
  readonly root: string;

  constructor(root: string) {
    this.root = root;
  }

  folder(id: number): string {
    return join(this.root, String(id));
  }

  /** What the snapshot itself holds. */
  fs(id: number): string {
    return join(this.folder(id), 'fs');
  }

  /** overlayfs's own. */
  work(id: number): string {
    return join(this.folder(id), 'work');
  }

  cover(id: number): string {
    return join(this.folder(id), 'cover');
  }

  /** Makes what a mount of an active snapshot needs; there already is success. */
  async create(id: number, owner: { readonly uid: number; readonly gid: number }, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    await mkdir(this.folder(id), { recursive: true, mode: FOLDER_MODE });
    await mkdir(this.work(id), { recursive: true, mode: 0o711 });
    const fs = this.fs(id);
    if ((await mkdir(fs, { recursive: true, mode: ROOT_MODE })) === undefined) return;
    // Not by mkdir's mode alone: the process's umask would take from it.
    await chown(fs, owner.uid, owner.gid);
    await chmod(fs, ROOT_MODE);
  }

  /** Owner of what the snapshot holds; root where there is nothing yet. */
  async owner(id: number, signal: AbortSignal): Promise<{ readonly uid: number; readonly gid: number }> {
    signal.throwIfAborted();
    try {
      const { uid, gid } = await lstat(this.fs(id));
      return { uid, gid };
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { uid: 0, gid: 0 };
      throw error;
    }
  }

  /** An empty folder for a cover, in place of one that a crash left. */
  async createCover(id: number, signal: AbortSignal): Promise<string> {
    signal.throwIfAborted();
    const cover = this.cover(id);
    await rm(cover, { recursive: true, force: true });
    await mkdir(cover, { recursive: true, mode: FOLDER_MODE });
    await chmod(cover, ROOT_MODE);
    return cover;
  }

  async remove(id: number, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    await rm(this.folder(id), { recursive: true, force: true });
  }

  /** IDs of all folders that are there. */
  async ids(signal: AbortSignal): Promise<readonly number[]> {
    signal.throwIfAborted();
    const names = await readdir(this.root).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return [];
      throw error;
    });
    return names.filter((name) => /^\d+$/.test(name)).map(Number);
  }

  /** Bytes and inodes of what the snapshot itself holds, hard links counted once. In a child: a layer may have 100,000 files. */
  async usage(id: number, signal: AbortSignal): Promise<Usage> {
    const fs = this.fs(id);
    const [sizeBytes, inodes] = await Promise.all([du(fs, '--block-size=1', signal), du(fs, '--inodes', signal)]);
    return { sizeBytes, inodes };
  }
}

function du(path: string, unit: string, signal: AbortSignal): Promise<number> {
  return new Promise((resolve, reject) => {
    execFile('du', ['--summarize', '--one-file-system', unit, '--', path], { signal }, (error, stdout) => {
      const value = Number.parseInt(stdout, 10);
      // du fails when a file goes away under it, and still prints a sum.
      if (Number.isFinite(value)) resolve(value);
      else reject(error ?? new Error(`Cannot measure ${path}: du printed ${JSON.stringify(stdout.slice(0, 100))}`));
    });
  });
}
