import { spawn } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { TOC_FILES } from './compare-trees.ts';
import type { RunningContainer } from './containerd.ts';
import { disposeOnInterrupt } from './interrupt.ts';
import type { TestNode } from './node.ts';
import { dropCaches } from './page-cache.ts';
import type { TreeEntry } from './walk-tree.ts';

export interface SoakImage {
  readonly reference: string;
  readonly chainId: string;
  /** The right rootfs. */
  readonly tree: ReadonlyMap<string, TreeEntry>;
}

export interface SoakResult {
  readonly kills: number;
  readonly containerRounds: number;
  readonly reads: number;
  readonly bytes: number;
  readonly longestReadMs: number;
}

/** Files that a container checks in one round, with coreutils that every test image has. */
const FILES_PER_ROUND = 150;
/** In a container, /proc and the like hide what the image has there. */
const HIDDEN = /^(proc|sys|dev|run|etc\/(hosts|hostname|resolv\.conf))(\/|$)/;

/**
 * Containers and a reader read whole images at random, with checksums, while the agent is killed with -9 again and again and
 * the page cache is dropped. @throws Error at the first error or wrong byte that one of them sees
 */
export async function soak(
  node: TestNode,
  images: readonly SoakImage[],
  options: { readonly kills: number; readonly pauseMs: () => number },
  signal: AbortSignal,
): Promise<SoakResult> {
  const { kindling, containerd, folder } = node;
  const lists = folder.join('soak');
  await mkdir(lists);
  await using stack = new AsyncDisposableStack();
  const containers: RunningContainer[] = [];
  const readers: RandomReader[] = [];
  for (const [i, image] of images.entries()) {
    const lines = digestLines(image.tree);
    await mkdir(join(lists, String(i)));
    await writeFile(join(lists, String(i), 'list'), lines.filter((line) => !HIDDEN.test(line.slice(66))).join('\n'));
    const script = `cd / && while :; do shuf -n ${FILES_PER_ROUND} /soak/list | sha256sum --quiet --check - || exit 1; echo round; done`;
    containers.push(
      stack.use(
        await containerd.start(
          image.reference,
          {
            snapshotter: 'kindling',
            args: ['--mount', `type=bind,src=${join(lists, String(i))},dst=/soak,options=rbind:ro`],
            command: ['sh', '-c', script],
          },
          signal,
        ),
      ),
    );
    const rootfs = folder.join(`soak-${i}`);
    stack.use(await containerd.mountImage(image.chainId, 'kindling', rootfs, signal));
    readers.push(stack.use(RandomReader.start(rootfs, i + 1, lines)));
  }
  const alive = (): void => {
    for (const container of containers) {
      if (!container.running) throw new Error(`Container ${container.id} ended: ${container.output.slice(-2_000)}`);
    }
    for (const reader of readers) reader.check();
  };
  let kills = 0;
  for (; kills < options.kills; kills++) {
    await sleep(options.pauseMs(), undefined, { signal });
    alive();
    await dropCaches(signal);
    const old = await kindling.killAgent();
    await kindling.untilServing(old, AbortSignal.any([signal, AbortSignal.timeout(60_000)]));
  }
  // Everyone must get further after the last one.
  const rounds = containers.map(roundsOf);
  const reads = readers.map((reader) => reader.reads);
  for (;;) {
    alive();
    if (
      containers.every((container, i) => roundsOf(container) > (rounds[i] ?? 0)) &&
      readers.every((reader, i) => reader.reads > (reads[i] ?? 0))
    ) {
      break;
    }
    await sleep(50, undefined, { signal });
  }
  return {
    kills,
    containerRounds: containers.reduce((sum, container) => sum + roundsOf(container), 0),
    reads: readers.reduce((sum, reader) => sum + reader.reads, 0),
    bytes: readers.reduce((sum, reader) => sum + reader.bytes, 0),
    longestReadMs: Math.max(...readers.map((reader) => reader.longestReadMs)),
  };
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
  readonly #child: ReturnType<typeof spawn>;
  readonly #forget: () => void;
  #errors = '';
  #ended = false;

  private constructor(child: ReturnType<typeof spawn>) {
    this.#child = child;
    this.#forget = disposeOnInterrupt(this);
  }

  static start(root: string, seed: number, lines: readonly string[]): RandomReader {
    const child = spawn(
      process.execPath,
      ['--disable-warning=ExperimentalWarning', join(import.meta.dirname, 'random-reader.ts'), root, String(seed)],
      { stdio: ['pipe', 'pipe', 'pipe'] },
    );
    const reader = new RandomReader(child);
    child.stdin.end(`${lines.join('\n')}\n\n`);
    createInterface({ input: child.stdout }).on('line', (line) => {
      const said = JSON.parse(line) as { reads: number; bytes: number; longestMs: number };
      reader.reads = said.reads;
      reader.bytes = said.bytes;
      reader.longestReadMs = said.longestMs;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => (reader.#errors += text));
    child.once('exit', () => (reader.#ended = true));
    return reader;
  }

  /** @throws Error when it has ended, which it does only at an error or a wrong byte */
  check(): void {
    if (this.#ended) throw new Error(`The reader ended: ${this.#errors.slice(-2_000)}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#forget();
    if (this.#ended) return;
    const ended = new Promise<void>((resolve) => this.#child.once('exit', () => resolve()));
    this.#child.kill('SIGKILL');
    await ended;
  }
}
