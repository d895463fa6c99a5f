import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { hostPlatform } from '#shared/registry/platform.ts';
import { parseReference } from '#shared/registry/reference.ts';
import { RegistryClient } from '#shared/registry/registry-client.ts';
import { TestContainerd } from '#test/harness/containerd.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { tinyImage, tinyProgram } from '#test/harness/tiny-image.ts';
import { runTool } from '#test/images/tool.ts';

const skip =
  process.getuid?.() !== 0
    ? 'containers and fanotify need root'
    : process.arch !== 'x64'
      ? 'its program is for x86-64'
      : false;

test('kindling optimize starts the image and puts what the start opens first', {
  skip,
  timeout: 120_000,
}, async (context) => {
  const { signal } = context;
  await using folder = await TempFolder.create('op');
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  await using containerd = await TestContainerd.start({ folder: folder.join('c') }, signal);
  const files = { 'a/unused': 'never read', 'bin/tool': tinyProgram('hello\n', 0), 'z/unused': 'neither' };
  const layout = await tinyImage(folder.join('image'), [files, { 'etc/other': 'x' }], ['/bin/tool'], signal);
  const source = await registry.push(layout, 'tool', 'plain', signal);
  await containerd.pull(source, 'overlayfs', signal);
  const target = registry.reference('tool', 'optimised');
  const main = new URL('../../services/cli/main.ts', import.meta.url).pathname;
  const places = ['--containerd', containerd.address, '--namespace', 'test', '--snapshotter', 'overlayfs'];
  const flags = ['--period', '60', '--record', folder.join('list'), '--spool', folder.path, '--json'];
  const printed = await runTool(
    process.execPath,
    ['--disable-warning=ExperimentalWarning', main, 'optimize', ...places, ...flags, source, target],
    signal,
  );
  const { images } = JSON.parse(printed) as { images: readonly { layers: readonly { action: string }[] }[] };
  assert.deepEqual(
    images[0]?.layers.map((layer) => layer.action),
    ['converted', 'converted'],
  );
  assert.deepEqual((await readFile(folder.join('list'), 'utf8')).trim().split('\n'), ['bin/tool']);

  const client = new RegistryClient();
  try {
    const reference = parseReference(target);
    const { parsed } = await client.platformManifest(reference, hostPlatform(), signal);
    const [layer] = parsed.layers;
    assert.ok(layer);
    await writeFile(folder.join('layer.tgz'), await client.blob(reference.repository, layer, signal));
    const order = (await runTool('tar', ['-tzf', folder.join('layer.tgz')], signal)).trim().split('\n');
    const [program, landmark, unused] = ['bin/tool', '.prefetch.landmark', 'a/unused'].map((name) =>
      order.indexOf(name),
    );
    assert.ok(program !== undefined && landmark !== undefined && unused !== undefined);
    assert.ok(0 <= program && program < landmark && landmark < unused, order.join(' '));
  } finally {
    await client.close();
  }
});
