import { mkdir, rm } from 'node:fs/promises';
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

  /** Takes all space that there is. */
  async fill(signal: AbortSignal): Promise<void> {
    await runTool('dd', ['if=/dev/zero', `of=${this.folder}/filler`, 'bs=64K', 'conv=fsync'], signal).then(
      () => {
        throw new Error(`Cannot fill ${this.folder}: it does not end`);
      },
      () => {
        // It ends when the disk is full.
      },
    );
  }

  async free(): Promise<void> {
    await rm(`${this.folder}/filler`, { force: true });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await unmountBelow(this.folder);
  }
}
