import { mkdir, rm, statfs, writeFile } from 'node:fs/promises';
import { runTool } from '#test/images/tool.ts';
import { unmountBelow } from './temp-folder.ts';

/** A small ext4 disk at a folder, in a file beside it; needs root. */
export class SmallDisk implements AsyncDisposable {
  readonly folder: string;

  private constructor(folder: string) {
    this.folder = folder;
  }

  static async create(folder: string, sizeMiB: number, signal: AbortSignal): Promise<SmallDisk> {
    await mkdir(folder, { recursive: true });
    await runTool('truncate', ['-s', `${sizeMiB}M`, `${folder}.disk`], signal);
    await runTool('mkfs.ext4', ['-q', '-m', '0', '-O', '^has_journal', `${folder}.disk`], signal);
    await runTool('mount', ['-o', 'loop', `${folder}.disk`, folder], signal);
    return new SmallDisk(folder);
  }

  /** Takes all space but `leaveMiB`. */
  async fill(leaveMiB: number, signal: AbortSignal): Promise<void> {
    const { bavail, bsize } = await statfs(this.folder);
    const bytes = Math.max(0, bavail * bsize - leaveMiB * 1_048_576);
    await runTool('fallocate', ['-l', String(bytes), `${this.folder}/filler`], signal);
    if (leaveMiB === 0) await writeFile(`${this.folder}/filler2`, Buffer.alloc(8 << 20)).catch(() => {});
  }

  async free(): Promise<void> {
    await rm(`${this.folder}/filler`, { force: true });
    await rm(`${this.folder}/filler2`, { force: true });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await unmountBelow(this.folder);
  }
}
