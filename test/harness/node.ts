import { setTimeout as sleep } from 'node:timers/promises';
import { differences, walkTree, type CompareOptions } from './compare-trees.ts';
import { TestContainerd } from './containerd.ts';
import { TestKindling, kindlingPaths } from './kindling.ts';
import { TempFolder } from './temp-folder.ts';
import type { TreeEntry } from './walk-tree.ts';

/** A node as an operator has it: containerd with Kindling as its proxy snapshotter, everything of its own. */
export class TestNode implements AsyncDisposable {
  readonly folder: TempFolder;
  readonly kindling: TestKindling;
  readonly containerd: TestContainerd;
  #mounts = 0;

  private constructor(folder: TempFolder, kindling: TestKindling, containerd: TestContainerd) {
    this.folder = folder;
    this.kindling = kindling;
    this.containerd = containerd;
  }

  /** `env`: settings of the agent. `data`: instead of a folder of its own for what the agent keeps. */
  static async start(env: Readonly<Record<string, string>>, signal: AbortSignal): Promise<TestNode> {
    const folder = await TempFolder.create('n');
    const parts = new AsyncDisposableStack();
    try {
      parts.use(folder);
      const kindling = parts.use(
        await TestKindling.start({ folder: folder.join('k'), containerd: folder.join('c', 'c.sock'), env }, signal),
      );
      const containerd = parts.use(
        await TestContainerd.start(
          { folder: folder.join('c'), snapshotterSocket: kindlingPaths(folder.join('k')).socket },
          signal,
        ),
      );
      parts.move();
      return new TestNode(folder, kindling, containerd);
    } catch (error) {
      await parts.disposeAsync();
      throw error;
    }
  }

  /** Starts Kindling again after it was killed, and waits until containerd has found it again. */
  async startKindlingAgain(signal: AbortSignal): Promise<void> {
    await this.kindling.startAgain(signal);
    const bounded = AbortSignal.any([signal, AbortSignal.timeout(60_000)]);
    // containerd tries a socket that was gone only every few seconds.
    while (!(await this.#reaches(bounded))) await sleep(100, undefined, { signal: bounded });
  }

  async #reaches(signal: AbortSignal): Promise<boolean> {
    return await this.containerd.ctr(['snapshots', '--snapshotter', 'kindling', 'list'], signal).then(
      () => true,
      () => false,
    );
  }

  /** Mounts an image's rootfs, as `snapshotter` has it, at a new folder and hands it to `use`. */
  async withRootfs<T>(
    chainId: string,
    snapshotter: string,
    signal: AbortSignal,
    use: (rootfs: string) => Promise<T>,
  ): Promise<T> {
    const target = this.folder.join(`m${++this.#mounts}`);
    await using mounted = await this.containerd.mountImage(chainId, snapshotter, target, signal);
    void mounted;
    return await use(target);
  }

  /** All entries of an image's rootfs, as `snapshotter` has it. */
  async rootfsTree(chainId: string, snapshotter: string, signal: AbortSignal): Promise<Map<string, TreeEntry>> {
    return await this.withRootfs(chainId, snapshotter, signal, async (rootfs) => await walkTree(rootfs, signal));
  }

  /** What differs between an image's rootfs under overlayfs, which has been pulled for it, and under Kindling. */
  async rootfsDifferences(chainId: string, signal: AbortSignal, options: CompareOptions = {}): Promise<string[]> {
    const expected = await this.rootfsTree(chainId, 'overlayfs', signal);
    return differences(expected, await this.rootfsTree(chainId, 'kindling', signal), options);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.containerd[Symbol.asyncDispose]();
    await this.kindling[Symbol.asyncDispose]();
    await this.folder[Symbol.asyncDispose]();
  }
}
