import assert from 'node:assert/strict';
import { open, readFile, readdir, writeFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { convertImage } from '#shared/convert/convert-image.ts';
import { parseReference } from '#shared/registry/reference.ts';
import { RegistryClient } from '#shared/registry/registry-client.ts';
import { differences } from '#test/harness/compare-trees.ts';
import { LyingRegistry } from '#test/harness/lying-registry.ts';
import { TestNode } from '#test/harness/node.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { SmallDisk } from '#test/harness/small-disk.ts';
import { dropCaches } from '#test/harness/page-cache.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import type { TreeEntry } from '#test/harness/walk-tree.ts';
import { hasUnstableMtime, writeAwkwardImage } from '#test/images/awkward.ts';
import { runTool } from '#test/images/tool.ts';

/** A test that waits in vain says where, and before the runner ends the file. */
const timeout = 100_000;
const skip = process.getuid?.() === 0 ? false : 'needs root';
/** Nothing is fetched but what is read; a read that cannot be served ends soon. */
const SETTINGS = { KINDLING_BACKGROUND: 'false', KINDLING_READ_DEADLINE_MS: '200' };
const LARGE = 'sizes/large';

let folder: TempFolder;
let registry: TestRegistry;
let expected: ReadonlyMap<string, TreeEntry> | undefined;

before(async () => {
  if (skip !== false) return;
  const signal = AbortSignal.timeout(120_000);
  folder = await TempFolder.create('f');
  registry = await TestRegistry.start({ folder: folder.path }, signal);
  const layout = await writeAwkwardImage(folder.join('image'), 'gzip-6', signal);
  const source = await registry.push(layout, 'awkward', 'plain', signal);
  const client = new RegistryClient();
  try {
    await convertImage(
      {
        source: parseReference(source),
        target: parseReference(registry.reference('awkward', 'lazy')),
        client,
        format: 'estargz',
        platforms: 'all',
        chunkSize: 256 * 1024,
      },
      signal,
    );
  } finally {
    await client.close();
  }
});

after(async () => {
  if (skip !== false) return;
  await registry[Symbol.asyncDispose]();
  await folder[Symbol.asyncDispose]();
});

/** The tree as it must be: as overlayfs has it, unpacked once. */
async function rightTree(
  node: TestNode,
  chainId: string,
  signal: AbortSignal,
): Promise<ReadonlyMap<string, TreeEntry>> {
  if (expected === undefined) {
    await node.containerd.pull(registry.reference('awkward', 'lazy'), 'overlayfs', signal);
    expected = await node.rootfsTree(chainId, 'overlayfs', signal);
  }
  return expected;
}

async function assertRight(node: TestNode, chainId: string, signal: AbortSignal): Promise<void> {
  const right = await rightTree(node, chainId, signal);
  const actual = await node.rootfsTree(chainId, 'kindling', signal);
  assert.deepEqual(differences(right, actual, { ignoreMtime: hasUnstableMtime, ignoreTocFiles: true }), []);
}

/** sha256 of a file, or the error, read by a process of its own. */
async function read(rootfs: string, path: string, signal: AbortSignal): Promise<string> {
  try {
    return (await runTool('sha256sum', [`${rootfs}/${path}`], signal)).slice(0, 64);
  } catch (error) {
    return error instanceof Error && error.message.includes('Input/output error') ? 'EIO' : String(error);
  }
}

/** Waits until the agent has a read that it cannot answer, or until `reading` has ended, since all of it was there. */
async function untilWaiting(node: TestNode, reading: Promise<unknown>, signal: AbortSignal): Promise<void> {
  const over = { now: false };
  void reading.finally(() => (over.now = true));
  while (!over.now) {
    // It may just have been killed.
    const status = await node.kindling.client.status(signal).catch(() => undefined);
    if (status !== undefined && status.fuse.waiting > 0) return;
    await sleep(20, undefined, { signal });
  }
}

test('what a lying registry sends is neither mounted nor readable, and honest answers heal it', {
  skip,
  timeout,
}, async (t) => {
  const { signal } = t;
  await using liar = await LyingRegistry.start({ port: registry.port });
  await using node = await TestNode.start(SETTINGS, signal);
  liar.lying = true;
  // Neither lazily nor whole can anything be had from it.
  await assert.rejects(node.kindling.pull(`${liar.host}/awkward:lazy`, signal));
  assert.ok(liar.lies > 0);
  liar.lying = false;
  const { chainId } = await node.kindling.pull(`${liar.host}/awkward:lazy`, signal);
  const right = (await rightTree(node, chainId, signal)).get(LARGE)?.sha256;
  await node.withRootfs(chainId, 'kindling', signal, async (rootfs) => {
    await registry.stop();
    assert.equal(await read(rootfs, LARGE, signal), 'EIO');
    await registry.restart(signal);
    liar.lying = true;
    assert.equal(await read(rootfs, LARGE, signal), 'EIO');
    const layers = await node.kindling.client.layers(signal);
    assert.ok(
      layers.some((layer) => layer.errors > 0),
      'the errors are counted',
    );
    liar.lying = false;
    assert.equal(await read(rootfs, LARGE, signal), right);
  });
  await assertRight(node, chainId, signal);
});

test('with registry and agent gone what is here is read as soon as an agent is, all when the registry is; after a power cut nothing unverified', {
  skip,
  timeout,
}, async (t) => {
  const { signal } = t;
  // Reads wait for the registry as long as it takes here.
  await using node = await TestNode.start({ ...SETTINGS, KINDLING_READ_DEADLINE_MS: '120000' }, signal);
  const { kindling } = node;
  const { chainId } = await kindling.pull(registry.reference('awkward', 'lazy'), signal);
  const right = await rightTree(node, chainId, signal);
  await node.withRootfs(chainId, 'kindling', signal, async (rootfs) => {
    assert.equal(await read(rootfs, 'sizes/65536', signal), right.get('sizes/65536')?.sha256);
    await registry.stop();
    let before: Promise<string>;
    let after: Promise<string>;
    try {
      before = read(rootfs, LARGE, signal);
      await untilWaiting(node, before, signal);
      await kindling.killAgent();
      await dropCaches(signal);
      assert.equal(await read(rootfs, 'sizes/65536', signal), right.get('sizes/65536')?.sha256);
      after = read(rootfs, LARGE, signal);
      await untilWaiting(node, after, signal);
    } finally {
      await registry.restart(signal);
    }
    assert.equal(await before, right.get(LARGE)?.sha256, 'a read that has waited since before the agent was killed');
    assert.equal(await after, right.get(LARGE)?.sha256, 'a read that came while there was an agent and no registry');
  });

  await kindling.killAll();
  // Another boot: what was written last is not all on the disk.
  const bootFile = `${kindling.dataDir}/boot.json`;
  const boot = await readFile(bootFile, 'utf8');
  await writeFile(bootFile, boot.replace(/[0-9a-f]{8}-[0-9a-f-]{27}/, '00000000-0000-0000-0000-000000000000'));
  let damaged = 0;
  for (const layer of await readdir(`${kindling.dataDir}/layers`)) {
    await using image = await open(`${kindling.dataDir}/layers/${layer}/image`, 'r+');
    const { size } = await image.stat();
    if (size < 4_000_000) continue;
    await image.write(Buffer.alloc(1_000_000), 0, 1_000_000, size - 3_000_000);
    await image.truncate(size - 500_000);
    damaged++;
  }
  assert.equal(damaged, 1);
  await node.startKindlingAgain(signal);
  await assertRight(node, chainId, signal);
});

test('a full disk gives clear errors and no wrong byte, and all is right when there is space again', {
  skip,
  timeout,
}, async (t) => {
  const { signal } = t;
  await using place = await TempFolder.create('d');
  await using disk = await SmallDisk.create(place.join('disk'), 96, signal);
  await using node = await TestNode.start({ ...SETTINGS, KINDLING_DATA_DIR: disk.folder }, signal);
  const { chainId } = await node.kindling.pull(registry.reference('awkward', 'lazy'), signal);
  const right = (await rightTree(node, chainId, signal)).get(LARGE)?.sha256;
  await node.withRootfs(chainId, 'kindling', signal, async (rootfs) => {
    await disk.fill(signal);
    const full = await read(rootfs, LARGE, signal);
    assert.ok(full === 'EIO' || full === right, full);
    await disk.free();
    assert.equal(await read(rootfs, LARGE, signal), right);
  });
  await assertRight(node, chainId, signal);
});
