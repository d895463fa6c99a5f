import assert from 'node:assert/strict';
import { test } from 'node:test';
import { convertImage } from '#shared/convert/convert-image.ts';
import { parseReference } from '#shared/registry/reference.ts';
import { RegistryClient } from '#shared/registry/registry-client.ts';
import { chainIds } from '#test/harness/chain-id.ts';
import { differences, walkTree } from '#test/harness/compare-trees.ts';
import { TestContainerd } from '#test/harness/containerd.ts';
import { TestNode } from '#test/harness/node.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { hasUnstableMtime, writeAwkwardImage } from '#test/images/awkward.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';

test('the awkward image has the rootfs that containerd unpacks, whatever form its layers are in', {
  skip,
}, async (t) => {
  const { signal } = t;
  await using folder = await TempFolder.create('r');
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  const plain = await writeAwkwardImage(folder.join('plain'), 'gzip-6', signal);
  const source = await registry.push(plain, 'awkward', 'gzip-6', signal);
  await using containerd = await TestContainerd.start({ folder: folder.join('c') }, signal);
  await containerd.pull(source, 'overlayfs', signal);
  const top = chainIds((await plain.config()).rootfs.diff_ids).at(-1) ?? '';
  await using mounted = await containerd.mountImage(top, 'overlayfs', folder.join('m'), signal);
  void mounted;
  const expected = await walkTree(folder.join('m'), signal);
  assert.ok(expected.size > 1_500);

  const check = async (reference: string): Promise<void> => {
    // Each on a node of its own: layers of the same content would otherwise be found on the disk.
    await using node = await TestNode.start({}, signal);
    const pulled = await node.kindling.pull(reference, signal);
    assert.deepEqual(
      pulled.layers.map((layer) => layer.state),
      ['lazy', 'lazy', 'lazy'],
      JSON.stringify(pulled.layers),
    );
    await node.withRootfs(pulled.chainId, 'kindling', signal, async (rootfs) => {
      const actual = await walkTree(rootfs, signal);
      assert.deepEqual(differences(expected, actual, { ignoreMtime: hasUnstableMtime }), []);
    });
  };

  for (const compression of ['gzip-members', 'uncompressed', 'zstd-frames'] as const) {
    await t.test(compression, async () => {
      const layout = await writeAwkwardImage(folder.join(compression), compression, signal);
      await check(await registry.push(layout, 'awkward', compression, signal));
    });
  }
  for (const format of ['estargz', 'zstd-chunked'] as const) {
    await t.test(`${format} by our converter`, async () => {
      const client = new RegistryClient();
      try {
        await convertImage(
          {
            source: parseReference(source),
            target: parseReference(registry.reference('awkward', format)),
            client,
            format,
            platforms: 'all',
          },
          signal,
        );
      } finally {
        await client.close();
      }
      await check(registry.reference('awkward', format));
    });
  }
});
