import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { chainIds } from '#test/harness/chain-id.ts';
import { differences, walkTree } from '#test/harness/compare-trees.ts';
import { TestContainerd } from '#test/harness/containerd.ts';
import { LyingRegistry } from '#test/harness/lying-registry.ts';
import { TestNode } from '#test/harness/node.ts';
import { dropCaches } from '#test/harness/page-cache.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import type { TreeEntry } from '#test/harness/walk-tree.ts';
import { hasUnstableMtime, writeAwkwardImage } from '#test/images/awkward.ts';
import type { OciLayout } from '#test/images/oci-layout.ts';
import { pushWithSoci } from '#test/images/soci-image.ts';
import { runTool } from '#test/images/tool.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';
/** Nothing is fetched but what is read. */
const SETTINGS = { KINDLING_BACKGROUND: 'false' };
/** Small, so that small layers have several. */
const SPAN_BYTES = 64 * 1024;
const LARGE = 'sizes/large';
const CLI = fileURLToPath(new URL('../../services/cli/main.ts', import.meta.url));

let folder: TempFolder;
let registry: TestRegistry;
let layout: OciLayout;
/** As containerd unpacks it. */
let expected: ReadonlyMap<string, TreeEntry>;

before(async () => {
  if (skip !== false) return;
  const signal = AbortSignal.timeout(120_000);
  folder = await TempFolder.create('o');
  registry = await TestRegistry.start({ folder: folder.path }, signal);
  layout = await writeAwkwardImage(folder.join('image'), 'gzip-6', signal);
  const source = await registry.push(layout, 'plain', 'latest', signal);
  await using containerd = await TestContainerd.start({ folder: folder.join('c') }, signal);
  await containerd.pull(source, 'overlayfs', signal);
  const top = chainIds((await layout.config()).rootfs.diff_ids).at(-1) ?? '';
  await using mounted = await containerd.mountImage(top, 'overlayfs', folder.join('m'), signal);
  void mounted;
  expected = await walkTree(folder.join('m'), signal);
});

after(async () => {
  if (skip !== false) return;
  await registry[Symbol.asyncDispose]();
  await folder[Symbol.asyncDispose]();
});

/** Format of each layer of the image, in its order, and whether bytes of its files are on the node. */
async function layersOf(node: TestNode, signal: AbortSignal): Promise<readonly string[]> {
  const { manifest } = await layout.manifest();
  const layers = await node.kindling.client.layers(signal);
  return manifest.layers.map(({ digest }) => {
    const layer = layers.find((other) => other.layer === digest);
    return `${layer?.format} ${layer?.complete === true ? 'whole' : 'lazy'}`;
  });
}

async function assertRight(node: TestNode, chainId: string, signal: AbortSignal): Promise<void> {
  const actual = await node.rootfsTree(chainId, 'kindling', signal);
  assert.deepEqual(differences(expected, actual, { ignoreMtime: hasUnstableMtime }), []);
}

test('layers of a trusted image are lazy by its SOCI index; a zTOC that is of another layer is not used', {
  skip,
}, async ({ signal }) => {
  const options = { version: 1, spanBytes: SPAN_BYTES, ztocOf: [0, 1, 0] } as const;
  const reference = await pushWithSoci(registry, layout, 'soci', 'v1', options, signal);
  await using node = await TestNode.start({ ...SETTINGS, KINDLING_TRUSTED_INDEXES: registry.host }, signal);
  const { chainId } = await node.kindling.pull(reference, signal);
  const [lower, upper, last] = await layersOf(node, signal);
  assert.deepEqual([lower, upper], ['soci lazy', 'soci lazy']);
  assert.match(last ?? '', /^gzip/);
  await assertRight(node, chainId, signal);
  // All spans that have content were read.
  assert.deepEqual((await layersOf(node, signal)).slice(0, 2), ['soci whole', 'soci whole']);

  // After a power cut nothing says whether the disk has kept what was written: no digest is of that.
  await node.kindling.killAll();
  const bootFile = `${node.kindling.dataDir}/boot.json`;
  const boot = await readFile(bootFile, 'utf8');
  await writeFile(bootFile, boot.replace(/[0-9a-f]{8}-[0-9a-f-]{27}/, '00000000-0000-0000-0000-000000000000'));
  await node.startKindlingAgain(signal);
  await node.withRootfs(chainId, 'kindling', signal, async (rootfs) => {
    const said = await runTool('sha256sum', [`${rootfs}/${LARGE}`], signal);
    assert.equal(said.slice(0, 64), expected.get(LARGE)?.sha256);
  });
  const again = (await node.kindling.client.layers(signal)).filter(({ format }) => format === 'soci');
  assert.ok(again.some(({ bytesBySource }) => bytesBySource.registry > 0));
});

test('what the SOCI index says of the blob is checked before a byte is served', { skip }, async ({ signal }) => {
  const options = { version: 2, spanBytes: SPAN_BYTES, ztocOf: [0, 1, 2] } as const;
  const reference = await pushWithSoci(registry, layout, 'soci', 'v2', options, signal);
  const inspect = ['--disable-warning=ExperimentalWarning', CLI, 'inspect', reference, '--json'];
  const said = JSON.parse(await runTool(process.execPath, inspect, signal)) as {
    readonly layers: readonly { readonly index: string; readonly format: string }[];
  };
  assert.deepEqual(
    said.layers.map(({ index, format }) => [index, format]),
    options.ztocOf.map(() => ['soci', 'soci']),
  );
  await using liar = await LyingRegistry.start({ port: registry.port });
  await using node = await TestNode.start({ ...SETTINGS, KINDLING_TRUSTED_INDEXES: liar.host }, signal);
  const { chainId } = await node.kindling.pull(`${liar.host}/soci:v2`, signal);
  assert.deepEqual(
    (await layersOf(node, signal)).map((layer) => layer.slice(0, 4)),
    ['soci', 'soci', 'soci'],
  );
  liar.lying = true;
  await node.withRootfs(chainId, 'kindling', signal, async (rootfs) => {
    await assert.rejects(runTool('sha256sum', [`${rootfs}/${LARGE}`], signal), /Input\/output error/);
  });
  assert.ok(liar.lies > 0);
  liar.lying = false;
  await dropCaches(signal);
  await assertRight(node, chainId, signal);
});

test('a SOCI index beside an image that is not trusted is not looked at', { skip }, async ({ signal }) => {
  const options = { version: 1, spanBytes: SPAN_BYTES, ztocOf: [0, 1, 2] } as const;
  const reference = await pushWithSoci(registry, layout, 'soci', 'untrusted', options, signal);
  await using node = await TestNode.start({ ...SETTINGS, KINDLING_TRUSTED_INDEXES: `${registry.host}/other` }, signal);
  await node.kindling.pull(reference, signal);
  assert.deepEqual(await layersOf(node, signal), ['gzip whole', 'gzip whole', 'gzip whole']);
});
