import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { TestNode } from '#test/harness/node.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { tinyImage, tinyProgram } from '#test/harness/tiny-image.ts';
import { runTool } from '#test/images/tool.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';
const CLI = fileURLToPath(new URL('../../services/cli/main.ts', import.meta.url));

test('an image that was indexed by hand is lazy on a node that trusts its repository, without a cluster', {
  skip,
}, async (t) => {
  const { signal } = t;
  const kindling = async (...args: string[]) =>
    JSON.parse(
      await runTool(process.execPath, ['--disable-warning=ExperimentalWarning', CLI, ...args, '--json'], signal),
    ) as {
      readonly published: string[];
      readonly layers: {
        readonly index: string;
        readonly format: string;
        readonly spans?: number;
        readonly lazy?: string;
      }[];
      readonly format: string;
      readonly index: string;
    };
  await using folder = await TempFolder.create('x');
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  const files = { 'bin/hello': tinyProgram('hello\n', 0), 'share/large': 'some text of a file\n'.repeat(200_000) };
  const image = await registry.push(
    await tinyImage(folder.join('image'), [files], ['/bin/hello'], signal),
    'team/hello',
    'v1',
    signal,
  );

  const before = await kindling('inspect', image);
  assert.deepEqual(
    before.layers.map(({ index, format }) => [index, format]),
    [['none', 'gzip']],
  );
  const out = folder.join('indexes');
  const made = await kindling('index', image, '--push', '--output', out);
  assert.deepEqual(made.published, [out, 'registry']);
  const after = await kindling('inspect', image);
  assert.deepEqual(
    after.layers.map(({ index, format }) => [index, format]),
    [['registry', 'gzip']],
  );
  assert.ok((after.layers[0]?.spans ?? 0) > 0);
  const [file] = await readdir(out);
  assert.equal((await kindling('inspect', `${out}/${file}`)).index, 'file');

  const converted = registry.reference('team/hello', 'estargz');
  await kindling('convert', image, converted, '--format', 'estargz');
  assert.match((await kindling('inspect', converted)).layers[0]?.lazy ?? '', /as it is; nobody has checked its tar/);
  await kindling('index', converted, '--push');
  assert.match((await kindling('inspect', converted)).layers[0]?.lazy ?? '', /as it is; its tar was checked/);

  await using node = await TestNode.start(
    { KINDLING_BACKGROUND: 'false', KINDLING_TRUSTED_INDEXES: registry.host },
    signal,
  );
  await node.kindling.pull(image, signal);
  const [layer] = await node.kindling.client.layers(signal);
  // Without an index the layer would have been read in one pass, and be complete.
  assert.equal(layer?.residentSpans, 0, JSON.stringify(layer));
  const { code, output } = await node.containerd.run(image, { snapshotter: 'kindling' }, signal);
  assert.equal(code, 0, output);
  assert.equal(output, 'hello\n');
});
