import assert from 'node:assert/strict';
import { test } from 'node:test';
import { readTocFromRegistry } from '#shared/indexes/build-from-registry.ts';
import { hostPlatform } from '#shared/registry/platform.ts';
import { parseReference } from '#shared/registry/reference.ts';
import { RegistryClient } from '#shared/registry/registry-client.ts';
import { TestNode } from '#test/harness/node.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { hasUnstableMtime, writeAwkwardImage } from '#test/images/awkward.ts';
import { pushWithExternalTocs } from '#test/images/external-toc.ts';
import { convertByUs } from '#test/images/image-forms.ts';
import { saveImage } from '#test/images/remote-converter.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';

test('eStargz layers whose TOCs lie in an image beside theirs are lazy, and read in one pass where those are missing or others', {
  skip,
}, async ({ signal }) => {
  await using folder = await TempFolder.create('x');
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  const plain = await writeAwkwardImage(folder.join('plain'), 'gzip-6', signal);
  const source = await registry.push(plain, 'awkward', 'plain', signal);
  await convertByUs(source, registry.reference('awkward', 'inside'), 'estargz', signal);
  const inside = await saveImage(registry, 'awkward', 'inside', folder.join('inside'), signal);
  const reference = await pushWithExternalTocs(registry, inside, 'awkward', 'right', signal);
  await pushWithExternalTocs(registry, inside, 'other', 'exchanged', signal);
  await pushWithExternalTocs(registry, inside, 'without', 'missing', signal);

  const client = new RegistryClient();
  try {
    const formatsOf = async (image: string): Promise<readonly (string | undefined)[]> => {
      const named = parseReference(image);
      const { parsed } = await client.platformManifest(named, hostPlatform(), signal);
      const indexes = parsed.layers.map(async (layer) => await readTocFromRegistry(client, named, layer, signal));
      return (await Promise.all(indexes)).map((index) => index?.format);
    };
    // The last has no files, and was not converted.
    assert.deepEqual(await formatsOf(reference), ['estargz', 'estargz', undefined]);
    // A digest does not tell the tag, so nothing says where the TOCs are.
    const { digest } = await client.resolve(parseReference(reference), signal);
    assert.deepEqual(await formatsOf(`${registry.host}/awkward@${digest}`), [undefined, undefined, undefined]);
    for (const image of [registry.reference('other', 'exchanged'), registry.reference('without', 'missing')]) {
      assert.deepEqual(await formatsOf(image), [undefined, undefined, undefined]);
    }
  } finally {
    await client.close();
  }

  await using node = await TestNode.start({ KINDLING_BACKGROUND: 'false' }, signal);
  const { chainId } = await node.kindling.pull(reference, signal);
  const layers = await node.kindling.client.layers(signal);
  assert.deepEqual(layers.map(({ format }) => format).sort(), ['estargz', 'estargz', 'gzip']);
  assert.ok(layers.some(({ complete }) => !complete));
  await node.containerd.pull(reference, 'overlayfs', signal);
  const options = { ignoreMtime: hasUnstableMtime, ignoreTocFiles: true };
  assert.deepEqual(await node.rootfsDifferences(chainId, signal, options), []);

  // Their blobs are the same, so on a node of their own.
  await using other = await TestNode.start({ KINDLING_BACKGROUND: 'false' }, signal);
  const pulled = await other.kindling.pull(registry.reference('without', 'missing'), signal);
  assert.deepEqual(
    pulled.layers.map(({ state }) => state),
    ['lazy', 'lazy', 'lazy'],
  );
  assert.deepEqual(
    (await other.kindling.client.layers(signal)).map(({ format, complete }) => [format, complete]),
    [
      ['gzip', true],
      ['gzip', true],
      ['gzip', true],
    ],
  );
});
