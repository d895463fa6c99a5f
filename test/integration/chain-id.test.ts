import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { gunzipSync } from 'node:zlib';
import { chainIds } from '#shared/containerd/image-records.ts';
import { writerOf } from '#shared/convert/layer-writers.ts';
import { TestNode } from '#test/harness/node.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { tinyImage, tinyProgram } from '#test/harness/tiny-image.ts';
import { writeOciLayout } from '#test/images/oci-layout.ts';

const skip =
  process.getuid?.() !== 0 ? 'containers need root' : process.arch !== 'x64' ? 'its program is for x86-64' : false;

test('an image that names the tar of another image for its eStargz layer does not change what the other one holds', {
  skip,
}, async ({ signal }) => {
  await using folder = await TempFolder.create('ci');
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  const image = (name: string) =>
    tinyImage(folder.join(name), [{ 'bin/say': tinyProgram(`${name}\n`, 0) }], ['/bin/say'], signal);
  const [honest, other] = [await image('honest'), await image('other')];
  const [diffId] = (await honest.config()).rootfs.diff_ids;
  const [plain] = (await other.manifest()).manifest.layers;
  assert.ok(diffId && plain);
  const parts: Uint8Array[] = [];
  const tar = gunzipSync(await readFile(other.blobPath(plain.digest)));
  const written = await writerOf('estargz')(
    (async function* () {
      yield tar;
    })(),
    {},
    async (bytes) => void parts.push(Buffer.from(bytes)),
    signal,
  );
  const path = folder.join('evil.tar.gz');
  const blob = Buffer.concat(parts);
  await writeFile(path, blob);
  const { mediaType } = plain;
  const { digest, annotations } = written;
  const evilLayer = { path, mediaType, digest, size: blob.length, annotations, diffId, createdBy: 'evil' };
  const evil = await writeOciLayout(folder.join('evil'), [evilLayer], { command: ['/bin/say'] });

  const node = await TestNode.start({ KINDLING_BACKGROUND: 'false' }, signal);
  try {
    const says = async (reference: string): Promise<string> => {
      const { code, output } = await node.containerd.run(reference, { snapshotter: 'kindling' }, signal);
      assert.equal(code, 0, `${output}\n${node.kindling.log}`);
      return output;
    };
    const evilReference = await registry.push(evil, 'evil', 'v1', signal);
    const honestReference = await registry.push(honest, 'base', 'v1', signal);
    assert.deepEqual([(await node.kindling.pull(evilReference, signal)).chainId], chainIds([diffId]));
    assert.equal(await says(evilReference), 'other\n');
    assert.deepEqual(
      (await node.kindling.client.layers(signal)).map(({ tarChecked }) => tarChecked),
      [false],
    );
    assert.deepEqual([(await node.kindling.pull(honestReference, signal)).chainId], chainIds([diffId]));
    assert.equal(await says(honestReference), 'honest\n');
    // Its configuration says that it holds this.
    assert.equal(await says(evilReference), 'honest\n');
    assert.match(node.kindling.log, /a snapshot was made of a layer whose tar nobody has checked/);
  } finally {
    await node[Symbol.asyncDispose]();
  }
});
