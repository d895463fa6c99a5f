import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { LinkProcess } from '#test/harness/link-process.ts';
import { TestNode } from '#test/harness/node.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { tinyImage, tinyProgram } from '#test/harness/tiny-image.ts';
import { indexBeside } from '#test/images/image-forms.ts';
import { runTool } from '#test/images/tool.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';
const MiB = 1024 * 1024;
/** What the container does not read takes most of a minute on this link: it is ready long before. */
const LINK = { bytesPerSecond: 700_000, delayMs: 1 };
/** Of one zstd frame more than is decoded from its front for each of its parts; the program is in the part that comes first. */
const FILES = {
  'bin/': '',
  'share/': '',
  'bin/hello': tinyProgram('hello\n', 0),
  'share/text': 'some text of a file\n'.repeat(400_000),
  'share/noise': randomBytes(28 * MiB),
  'share/end': 'the last file\n',
};

test('a container of plain zstd starts while the one pass over its blob goes on, also when the agent is killed meanwhile', {
  skip,
}, async (t) => {
  const { signal } = t;
  await using folder = await TempFolder.create('r');
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  const layout = await tinyImage(folder.join('image'), [FILES], ['/bin/hello'], signal, 'zstd');
  const direct = await registry.push(layout, 'hello', 'zstd', signal);
  await indexBeside(direct, signal);
  await using link = await LinkProcess.start(registry.port, LINK, signal);
  await using node = await TestNode.start({ KINDLING_TRUSTED_INDEXES: '*' }, signal);
  const { kindling, containerd } = node;
  const reference = `${link.host}/hello:zstd`;

  const pulled = await kindling.pull(reference, signal);
  assert.deepEqual(
    pulled.layers.map(({ state }) => state),
    ['lazy'],
  );
  const said = await containerd.ctr(['run', '--rm', '--snapshotter', 'kindling', reference, 'stream-start'], signal);
  assert.equal(said, 'hello\n');
  const [during] = await kindling.client.layers(signal);
  assert.equal(during?.complete, false);
  assert.ok((await link.bytesDown()) < 14 * MiB);

  // What has passed is on the disk; the next agent begins at the front again, for the rest.
  await kindling.untilServing(await kindling.killAgent(), signal);
  link.unlimited();
  await containerd.pull(direct, 'overlayfs', signal);
  const wrong = await node.rootfsDifferences(pulled.chainId, signal);
  assert.deepEqual(wrong, []);
  await kindling.untilComplete(signal);
  const [layer] = pulled.layers;
  await runTool('fsck.erofs', [`${kindling.dataDir}/layers/${layer?.layer.slice(7)}/image`], signal);
});
