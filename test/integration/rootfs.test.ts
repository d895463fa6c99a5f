import assert from 'node:assert/strict';
import { test } from 'node:test';
import { convertImage } from '#shared/convert/convert-image.ts';
import { parseReference } from '#shared/registry/reference.ts';
import { RegistryClient } from '#shared/registry/registry-client.ts';
import { differences, walkTree } from '#test/harness/compare-trees.ts';
import { TestNode } from '#test/harness/node.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import type { TreeEntry } from '#test/harness/walk-tree.ts';
import { hasUnstableMtime, writeAwkwardImage } from '#test/images/awkward.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';

test('the awkward image has the rootfs that containerd unpacks, whatever form its layers are in', {
  skip,
}, async (t) => {
  const { signal } = t;
  await using folder = await TempFolder.create('r');
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  let expected: ReadonlyMap<string, TreeEntry> | undefined;

  const check = async (reference: string, lazy: boolean): Promise<void> => {
    // Each on a node of its own: layers of the same content would otherwise be found on the disk.
    await using node = await TestNode.start({}, signal);
    const pulled = await node.kindling.pull(reference, signal);
    assert.deepEqual(
      pulled.layers.map((layer) => layer.state),
      pulled.layers.map(() => (lazy ? 'lazy' : 'full')),
      JSON.stringify(pulled.layers),
    );
    if (expected === undefined) {
      await node.containerd.pull(reference, 'overlayfs', signal);
      expected = await node.withRootfs(
        pulled.chainId,
        'overlayfs',
        signal,
        async (rootfs) => await walkTree(rootfs, signal),
      );
      assert.ok(expected.size > 1_500);
    }
    const actual = await node.withRootfs(
      pulled.chainId,
      'kindling',
      signal,
      async (rootfs) => await walkTree(rootfs, signal),
    );
    assert.deepEqual(differences(expected, actual, { ignoreMtime: hasUnstableMtime }), []);
  };

  for (const compression of ['gzip-6', 'gzip-members', 'pigz', 'uncompressed', 'zstd-frames'] as const) {
    await t.test(compression, async () => {
      const layout = await writeAwkwardImage(folder.join(compression), compression, signal);
      await check(await registry.push(layout, 'awkward', compression, signal), true);
    });
  }
  for (const format of ['estargz', 'zstd-chunked'] as const) {
    await t.test(`${format} by our converter`, async () => {
      const client = new RegistryClient();
      try {
        await convertImage(
          {
            source: parseReference(registry.reference('awkward', 'gzip-6')),
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
      await check(registry.reference('awkward', format), true);
    });
  }
});
