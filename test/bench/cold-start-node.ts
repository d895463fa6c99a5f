import { writeAwkwardImage } from '#test/images/awkward.ts';
import { runTool } from '#test/images/tool.ts';
import type { Recipe } from '#test/images/recipe.ts';
import { TestContainerd } from '#test/harness/containerd.ts';
import { TestKindling, kindlingPaths } from '#test/harness/kindling.ts';
import { dropCaches } from '#test/harness/page-cache.ts';
import { startUntilReady } from '#test/harness/readiness.ts';
import type { TestRegistry } from '#test/harness/registry.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { lazyImage } from './lazy-image.ts';

/** What one node measured of one image, from nothing to read whole. Times in milliseconds. */
export interface ColdStart {
  readonly pullMs: number;
  /** First start, right after the pull. */
  readonly readyMs: number;
  /** Pull and first start: what an invocation on a new node waits for. */
  readonly totalMs: number;
  /** Bytes from the registry up to the first ready, over the bytes of all layers. */
  readonly fetchedBytes: number;
  /** Start with the page cache dropped and nothing else changed. */
  readonly droppedMs: number;
  /** Start right after another. */
  readonly secondMs: number;
  /** Reading every file once, page cache dropped, layers complete. */
  readonly readBytesPerSecond?: number;
  readonly agentPeakBytes?: number;
  readonly keeperPeakBytes?: number;
}

export interface ColdStartCase {
  readonly recipe: Recipe;
  readonly reference: string;
  /** Chain ID of the top layer. */
  readonly chainId: string;
  /** Counts what has come from the registry so far. */
  readonly bytesDown: () => Promise<number>;
  readonly warmUp: WarmUp;
  /** Also read the whole rootfs. */
  readonly readAll: boolean;
  /** Called with the rootfs mounted at a folder, to see that it is right; not for every round. */
  readonly check?: (rootfs: string) => Promise<void>;
}

/** A small image that shares no layer with what is measured, lazy and plain, by which the node's programs are made warm. */
export interface WarmUp {
  readonly lazy: string;
  readonly plain: string;
}

export async function pushWarmUp(registry: TestRegistry, folder: TempFolder, signal: AbortSignal): Promise<WarmUp> {
  const image = await writeAwkwardImage(folder.join('warm-up'), 'gzip-6', signal);
  const plain = await registry.push(image, 'warm-up', 'original', signal);
  return { plain, lazy: await lazyImage('warm-up', 'estargz', registry, signal) };
}

/** A new containerd with overlayfs: pulls the image whole, as without Kindling. */
export async function measureOverlayfs(c: ColdStartCase, signal: AbortSignal): Promise<ColdStart> {
  await using folder = await TempFolder.create('cs');
  await using containerd = await TestContainerd.start({ folder: folder.join('c') }, signal);
  await containerd.pull(c.warmUp.plain, 'overlayfs', signal);
  return await measure(
    c,
    containerd,
    'overlayfs',
    folder,
    async () => await containerd.pull(c.reference, 'overlayfs', signal),
    signal,
  );
}

/** A new containerd and a new node of Kindling. */
export async function measureKindling(
  c: ColdStartCase,
  env: Readonly<Record<string, string>>,
  signal: AbortSignal,
): Promise<ColdStart> {
  await using folder = await TempFolder.create('cs');
  const snapshotterSocket = kindlingPaths(folder.join('k')).socket;
  const containerdSocket = folder.join('c', 'c.sock');
  await using kindling = await TestKindling.start(
    { folder: folder.join('k'), containerd: containerdSocket, env },
    signal,
  );
  await using containerd = await TestContainerd.start({ folder: folder.join('c'), snapshotterSocket }, signal);
  // A node that runs functions has served others before: its threads and connections are there.
  const { chainId } = await kindling.pull(c.warmUp.lazy, signal);
  {
    await using mounted = await containerd.mountImage(chainId, 'kindling', folder.join('w'), signal);
    void mounted;
    await readAll(folder.join('w'), signal);
  }
  const pull = async (): Promise<void> => {
    const { layers } = await kindling.pull(c.reference, signal);
    const full = layers.filter((layer) => layer.state === 'full');
    if (full.length > 0) throw new Error(`${c.recipe.name}: not lazy: ${full.map((layer) => layer.reason).join('; ')}`);
  };
  const complete = async (): Promise<void> => await kindling.untilComplete(signal);
  const result = await measure(c, containerd, 'kindling', folder, pull, signal, complete);
  const memory = await kindling.memory();
  return { ...result, agentPeakBytes: memory.agent.peakBytes, keeperPeakBytes: memory.keeper.peakBytes };
}

async function measure(
  c: ColdStartCase,
  containerd: TestContainerd,
  snapshotter: string,
  folder: TempFolder,
  pull: () => Promise<void>,
  signal: AbortSignal,
  complete?: () => Promise<void>,
): Promise<ColdStart> {
  await dropCaches(signal);
  // The programs themselves (ctr, runc, shim) are warm on a node that runs functions.
  await containerd.ctr(['version'], signal);
  await runTool('runc', ['--version'], signal);
  const before = await c.bytesDown();
  const started = performance.now();
  await pull();
  const pullMs = performance.now() - started;
  const { readyMs } = await startUntilReady(containerd, c.reference, c.recipe, snapshotter, signal);
  const totalMs = performance.now() - started;
  const fetchedBytes = (await c.bytesDown()) - before;
  await dropCaches(signal);
  const { readyMs: droppedMs } = await startUntilReady(containerd, c.reference, c.recipe, snapshotter, signal);
  const { readyMs: secondMs } = await startUntilReady(containerd, c.reference, c.recipe, snapshotter, signal);
  let readBytesPerSecond: number | undefined;
  if (c.readAll || c.check !== undefined) {
    await complete?.();
    await using mounted = await containerd.mountImage(c.chainId, snapshotter, folder.join('m'), signal);
    void mounted;
    if (c.readAll) {
      await dropCaches(signal);
      readBytesPerSecond = await readAll(folder.join('m'), signal);
    }
    await c.check?.(folder.join('m'));
  }
  const times = { pullMs, readyMs, totalMs, fetchedBytes, droppedMs, secondMs };
  return readBytesPerSecond === undefined ? times : { ...times, readBytesPerSecond };
}

/** Reads every file of a tree in directory order, as `tar` would; in a child process. */
async function readAll(rootfs: string, signal: AbortSignal): Promise<number> {
  const started = performance.now();
  const bytes = await runTool(
    'sh',
    ['-euc', 'find "$1" -xdev -type f -print0 | xargs -0 cat | wc -c', 'read', rootfs],
    signal,
  );
  return (Number(bytes.trim()) * 1000) / (performance.now() - started);
}
