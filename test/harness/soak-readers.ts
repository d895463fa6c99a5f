import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { TOC_FILES } from './compare-trees.ts';
import type { RunningContainer } from './containerd.ts';
import type { LongRead } from './long-reads.ts';
import type { TestNode } from './node.ts';
import { ReadingProcess } from './reading-process.ts';
import type { TreeEntry } from './walk-tree.ts';

export interface ReadImage {
  readonly reference: string;
  readonly chainId: string;
  /** The right rootfs. */
  readonly tree: ReadonlyMap<string, TreeEntry>;
}

/** Files that a container checks in one round, with coreutils that every test image has. */
const FILES_PER_ROUND = 150;
/** In a container, /proc and the like hide what the image has there. */
const HIDDEN = /^(proc|sys|dev|run|etc\/(hosts|hostname|resolv\.conf))(\/|$)/;

/** Containers and processes outside of them that read whole images at random, with checksums, for as long as they live. */
export class SoakReaders implements AsyncDisposable {
  readonly #containers: RunningContainer[] = [];
  readonly #readers: RandomReader[] = [];
  readonly #owned = new AsyncDisposableStack();

  /** One container and one reader of each image. */
  static async start(node: TestNode, images: readonly ReadImage[], signal: AbortSignal): Promise<SoakReaders> {
    const readers = new SoakReaders();
    try {
      for (const [i, image] of images.entries()) await readers.#add(node, i, image, signal);
    } catch (error) {
      await readers[Symbol.asyncDispose]();
      throw error;
    }
    return readers;
  }

  /** @throws Error when one of them has ended, which it does only at an error or a wrong byte */
  check(): void {
    for (const container of this.#containers) {
      if (!container.running) throw new Error(`Container ${container.id} ended: ${container.output.slice(-2_000)}`);
    }
    for (const reader of this.#readers) reader.check();
  }

  /** Waits until each of them has got further. */
  async untilFurther(signal: AbortSignal): Promise<void> {
    const rounds = this.#containers.map(roundsOf);
    const reads = this.#readers.map((reader) => reader.reads);
    for (;;) {
      this.check();
      if (
        this.#containers.every((container, i) => roundsOf(container) > (rounds[i] ?? 0)) &&
        this.#readers.every((reader, i) => reader.reads > (reads[i] ?? 0))
      ) {
        return;
      }
      await sleep(50, undefined, { signal });
    }
  }

  get totals(): {
    readonly containerRounds: number;
    readonly reads: number;
    readonly bytes: number;
    readonly longestReadMs: number;
  } {
    return {
      containerRounds: this.#containers.reduce((sum, container) => sum + roundsOf(container), 0),
      reads: this.#readers.reduce((sum, reader) => sum + reader.reads, 0),
      bytes: this.#readers.reduce((sum, reader) => sum + reader.bytes, 0),
      longestReadMs: Math.max(0, ...this.#readers.map((reader) => reader.longestReadMs)),
    };
  }

  get longReads(): readonly LongRead[] {
    return this.#readers.flatMap((reader) => reader.longReads);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#owned.disposeAsync();
  }

  async #add(node: TestNode, i: number, image: ReadImage, signal: AbortSignal): Promise<void> {
    const lines = digestLines(image.tree);
    const lists = node.folder.join('soak', String(i));
    await mkdir(lists, { recursive: true });
    await writeFile(join(lists, 'list'), lines.filter((line) => !HIDDEN.test(line.slice(66))).join('\n'));
    const script = `cd / && while :; do shuf -n ${FILES_PER_ROUND} /soak/list | sha256sum --quiet --check - || exit 1; echo round; sleep 0.1; done`;
    const options = {
      snapshotter: 'kindling',
      args: ['--mount', `type=bind,src=${lists},dst=/soak,options=rbind:ro`],
      command: ['sh', '-c', script],
    };
    this.#containers.push(this.#owned.use(await node.containerd.start(image.reference, options, signal)));
    const rootfs = node.folder.join(`soak-${i}`);
    this.#owned.use(await node.containerd.mountImage(image.chainId, 'kindling', rootfs, signal));
    this.#readers.push(this.#owned.use(new RandomReader(rootfs, i + 1, lines)));
  }
}

function roundsOf(container: RunningContainer): number {
  return container.output.split('round\n').length - 1;
}

/** Lines as sha256sum takes them; names that it would have to escape are left out. */
function digestLines(tree: ReadonlyMap<string, TreeEntry>): string[] {
  return [...tree.values()]
    .filter((entry) => !TOC_FILES.has(entry.path))
    .filter((entry) => entry.sha256 !== undefined && /^[\x20-\x5b\x5d-\x7e]+$/.test(entry.path))
    .map((entry) => `${entry.sha256}  ${entry.path}`);
}

class RandomReader implements AsyncDisposable {
  reads = 0;
  bytes = 0;
  longestReadMs = 0;
  readonly longReads: LongRead[] = [];
  readonly #process: ReadingProcess;

  constructor(root: string, seed: number, lines: readonly string[]) {
    this.#process = ReadingProcess.start({
      script: 'random-reader.ts',
      args: [root, String(seed)],
      input: `${lines.join('\n')}\n\n`,
      onLine: (line) => {
        const said = JSON.parse(line) as { reads: number; bytes: number; longestMs: number; longReads: LongRead[] };
        this.reads = said.reads;
        this.bytes = said.bytes;
        this.longestReadMs = said.longestMs;
        this.longReads.push(...said.longReads);
      },
    });
  }

  check(): void {
    this.#process.check();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process[Symbol.asyncDispose]();
  }
}
