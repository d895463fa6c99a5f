import { stat } from 'node:fs/promises';
import type { Recipe } from '#test/images/recipe.ts';
import { runTool } from '#test/images/tool.ts';
import { differences, type CompareOptions } from './compare-trees.ts';
import type { PulledLayer } from './kindling.ts';
import type { LinkProcess } from './link-process.ts';
import type { TestNode } from './node.ts';
import { startUntilReady } from './readiness.ts';
import type { TreeEntry } from './walk-tree.ts';

export interface RootfsCase {
  /** `name:tag` in the registry behind the link. */
  readonly repository: string;
  readonly expected: ReadonlyMap<string, TreeEntry>;
  readonly compare: CompareOptions;
  /** Also start a container and wait until it is ready; images without a program have none. */
  readonly start?: Recipe;
}

export interface CheckedRootfs {
  /** By which the node has it. */
  readonly reference: string;
  readonly layers: readonly PulledLayer[];
  /** All that came from the registry until the image was pulled, and until its container was ready. */
  readonly pullBytes: number;
  readonly startBytes: number;
  /** Entries of the rootfs. */
  readonly entries: number;
  /** What is not as it should be; empty when all is right. */
  readonly problems: readonly string[];
}

const BLOCK_BYTES = 4096;

/**
 * Pulls an image lazily on a node, starts it, compares its rootfs with the expected one, completes its layers and has them checked
 * by the tools of EROFS. No other form of the image may be on the node: its layers would be found there.
 */
export async function checkRootfs(
  node: TestNode,
  link: LinkProcess,
  c: RootfsCase,
  signal: AbortSignal,
): Promise<CheckedRootfs> {
  const reference = `${link.host}/${c.repository}`;
  const { kindling, containerd } = node;
  const before = await link.bytesDown();
  const { layers, chainId } = await kindling.pull(reference, signal);
  const pullBytes = (await link.bytesDown()) - before;
  if (c.start !== undefined) await startUntilReady(containerd, reference, c.start, 'kindling', signal);
  const startBytes = (await link.bytesDown()) - before;
  const problems = layers
    .filter(({ state }) => state !== 'lazy')
    .map(({ layer, state, reason }) => `${layer.slice(7, 19)} is ${state}: ${reason ?? ''}`);
  const actual = await node.rootfsTree(chainId, 'kindling', signal);
  problems.push(...differences(c.expected, actual, c.compare));
  const hexes = [...new Set(layers.map(({ layer }) => layer.slice('sha256:'.length)))];
  for (const hex of hexes) {
    const { dataDir } = kindling;
    try {
      await checkLayerImage(`${dataDir}/fuse/${hex}.img`, `${dataDir}/layers/${hex}/image`, signal);
    } catch (error) {
      problems.push(`${hex.slice(0, 12)}: ${error instanceof Error ? error.message : String(error)}`);
    }
  }
  const left = (await kindling.client.layers(signal)).filter(({ complete }) => !complete);
  problems.push(...left.map(({ layer }) => `${layer.slice(7, 19)} is not complete although all of it was read`));
  return { layers, reference, pullBytes, startBytes, entries: actual.size, problems };
}

/** As a node is set up for it: it completes nothing by itself, and finds indexes beside images. */
export const CHECKED_NODE = { KINDLING_BACKGROUND: 'false', KINDLING_TRUSTED_INDEXES: '*' } as const;

/** Reads a layer image whole, as a reader would, which completes it; then its file on the disk must be the same, and sound. */
async function checkLayerImage(served: string, file: string, signal: AbortSignal): Promise<void> {
  await runTool('cmp', [served, file], signal);
  await runTool('fsck.erofs', [file], signal);
  const shown = await runTool('dump.erofs', ['-s', file], signal);
  const blocks = Number(/Filesystem blocks:\s+(\d+)/.exec(shown)?.[1]);
  const { size } = await stat(file);
  if (blocks * BLOCK_BYTES !== size) throw new Error(`its superblock says ${blocks} blocks, but it has ${size} bytes`);
}
