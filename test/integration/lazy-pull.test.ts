/** Pulls through a real containerd and registry; the layers' mounts are stand-ins: plain folders instead of EROFS. */
import assert from 'node:assert/strict';
import { chmodSync, chownSync, mkdirSync, statSync } from 'node:fs';
import { text } from 'node:stream/consumers';
import { test } from 'node:test';
import type { Digest } from '#shared/digest/digest.ts';
import { ContainerdClient } from '#shared/containerd/containerd-client.ts';
import { runContainer } from '#shared/containerd/container.ts';
import { SnapshotsService } from '#shared/containerd/gen/snapshots.ts';
import { ContentStore } from '#shared/containerd/content-store.ts';
import { ImageRecords } from '#shared/containerd/image-records.ts';
import { hostPlatform } from '#shared/registry/platform.ts';
import { RegistryClient } from '#shared/registry/registry-client.ts';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { LazyPull } from '#services/snapshotter/images/lazy-pull.ts';
import {
  NotLazyError,
  type LayerProvider,
  type ProvidedLayer,
} from '#services/snapshotter/snapshots/layer-provider.ts';
import { TestContainerd } from '#test/harness/containerd.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { SnapshotRig } from '#test/harness/snapshot-rig.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { tinyImage, tinyProgram } from '#test/harness/tiny-image.ts';
import { runTool } from '#test/images/tool.ts';

const skip =
  process.getuid?.() !== 0 ? 'containers need root' : process.arch !== 'x64' ? 'its program is for x86-64' : false;

/** Layers that are already unpacked in folders. */
class FolderLayers implements LayerProvider {
  readonly folders = new Map<Digest, ProvidedLayer>();
  readonly provided: Digest[] = [];
  readonly released: Digest[] = [];

  provide(request: { readonly layer: Digest }): Promise<ProvidedLayer> {
    const found = this.folders.get(request.layer);
    if (found === undefined) return Promise.reject(new NotLazyError('no-index', 'nobody has indexed it'));
    this.provided.push(request.layer);
    return Promise.resolve(found);
  }
  mountOf(layer: Digest): Promise<string> {
    const found = this.folders.get(layer);
    return found === undefined ? Promise.reject(new NotLazyError('no-index', 'gone')) : Promise.resolve(found.path);
  }
  tarOf(): undefined {}
  async learnTar(): Promise<void> {}
  usage(): { readonly sizeBytes: number; readonly inodes: number } {
    return { sizeBytes: 4096, inodes: 1 };
  }
  release(layer: Digest): Promise<void> {
    this.released.push(layer);
    return Promise.resolve();
  }
}

test('An image is pulled lazily where it can be and whole where not, runs, and leaves nothing when it is removed', {
  skip,
}, async (context) => {
  const { signal } = context;
  await using folder = await TempFolder.create('lp');
  const layers = new FolderLayers();
  await using rig = await SnapshotRig.start(signal, layers);
  mkdirSync(folder.join('registry'));
  await using registry = await TestRegistry.start({ folder: folder.join('registry') }, signal);
  await using containerd = await TestContainerd.start(
    { folder: folder.join('c'), snapshotterSocket: rig.address },
    signal,
  );
  const layout = await tinyImage(
    folder.join('image'),
    [
      { hello: tinyProgram('hello from a layer\n', 3), 'data/': '', 'data/private/': '', 'data/private/a': 'a' },
      { whole: 'this layer has no index' },
      { 'data/private/b': 'b', 'fresh/c': 'c' },
    ],
    ['/hello'],
    signal,
  );
  const reference = await registry.push(layout, 'tiny', 'v1', signal);
  const { manifest } = await layout.manifest();
  const [first, second, third] = manifest.layers.map((layer) => layer.digest);
  assert.ok(first !== undefined && second !== undefined && third !== undefined);
  for (const [layer, implied] of [
    [first, []],
    [third, ['data', 'data/private', 'fresh']],
  ] as const) {
    const path = folder.join(`layer-${layer.slice(7, 19)}`);
    mkdirSync(path);
    await runTool('tar', ['--extract', '--file', layout.blobPath(layer), '--directory', path], signal);
    layers.folders.set(layer, { path, impliedDirectories: implied.map((name) => Buffer.from(name)) });
  }
  const lower = layers.folders.get(first)?.path ?? '';
  chownSync(`${lower}/data/private`, 5, 6);
  chmodSync(`${lower}/data/private`, 0o1710);

  const client = new ContainerdClient({ address: containerd.address, namespace: 'test' });
  const registryClient = new RegistryClient();
  try {
    const pull = new LazyPull({
      registry: registryClient,
      containerd: client,
      snapshots: rig.service.remote,
      snapshotter: 'kindling',
      logger: silentLogger,
    });
    const report = await pull.pull(reference, { platform: hostPlatform() }, signal);
    assert.deepEqual(
      report.layers.map(({ how, reason }) => [how, reason]),
      [
        ['lazy', undefined],
        ['full', 'nobody has indexed it'],
        ['lazy', undefined],
      ],
    );
    assert.deepEqual(
      rig.service.notLazy().map(({ layer, code }) => [layer, code]),
      [[second, 'no-index']],
    );
    const content = new ContentStore(client);
    assert.equal(await content.has(first, signal), false, 'a lazy layer is not downloaded');
    assert.equal(await content.has(second, signal), true);

    // What the third layer only implies looks as in the layers below.
    await rig.mounted(await rig.view('look', report.topSnapshot), (root) => {
      const stat = statSync(`${root}/data/private`);
      assert.deepEqual([stat.mode & 0o7777, stat.uid, stat.gid], [0o1710, 5, 6]);
      assert.deepEqual(
        ['a', 'b'].map((name) => statSync(`${root}/data/private/${name}`).size),
        [1, 1],
      );
      assert.ok(statSync(`${root}/fresh/c`).isFile());
    });
    await rig.remove('look');

    const image = await new ImageRecords(client, content).load(reference, hostPlatform(), signal);
    const stages: string[] = [];
    const container = await runContainer(
      client,
      { id: 'tiny-1', image, snapshotter: 'kindling', onStage: (stage) => stages.push(stage) },
      signal,
    );
    const [output, errors, exit] = await Promise.all([
      text(container.stdout),
      text(container.stderr),
      container.exited,
    ]);
    await container.remove(signal);
    await container.remove(signal);
    assert.deepEqual([output, errors, exit.exitCode], ['hello from a layer\n', '', 3]);
    assert.deepEqual(stages, ['snapshot', 'container', 'task', 'started']);
    await assert.rejects(
      runContainer(client, { id: 'tiny-2', image, snapshotter: 'kindling', args: ['/nowhere'] }, signal),
      /nowhere/,
    );
    // containerd's own view: our socket only hears of it at the next garbage collection.
    const list = { snapshotter: 'kindling', filters: ['kind==active'] };
    for await (const { info } of client.stream(SnapshotsService.list, list, signal)) {
      assert.deepEqual(info, [], 'neither an ended container nor one that cannot start leaves a snapshot');
    }

    // ctr itself finds it unpacked.
    const run = await containerd.run(reference, { snapshotter: 'kindling' }, signal);
    assert.deepEqual([run.code, run.output], [3, 'hello from a layer\n']);

    const again = await pull.pull(reference, { platform: hostPlatform() }, signal);
    assert.deepEqual(
      again.layers.map((layer) => layer.how),
      ['present', 'present', 'present'],
    );

    // The data folder is lost, containerd remembers: only another pull can tell.
    const lost = await tinyImage(
      folder.join('lost'),
      [{ hello: tinyProgram('back again\n', 0) }, { lower: 'b' }],
      ['/hello'],
      signal,
    );
    const lostReference = await registry.push(lost, 'lost', 'v1', signal);
    for (const { digest } of (await lost.manifest()).manifest.layers) {
      const path = folder.join(`layer-${digest.slice(7, 19)}`);
      mkdirSync(path);
      await runTool('tar', ['--extract', '--file', lost.blobPath(digest), '--directory', path], signal);
      layers.folders.set(digest, { path });
    }
    const { topSnapshot } = await pull.pull(lostReference, { platform: hostPlatform() }, signal);
    const { parent } = await rig.stat(topSnapshot);
    for (const name of [topSnapshot, parent]) rig.service.remove(name);
    await assert.rejects(
      containerd.run(lostReference, { snapshotter: 'kindling' }, signal).then(({ code }) => assert.equal(code, 0)),
    );
    const back = await pull.pull(lostReference, { platform: hostPlatform() }, signal);
    assert.deepEqual(
      back.layers.map((layer) => layer.how),
      ['lazy', 'lazy'],
    );
    const started = await containerd.run(lostReference, { snapshotter: 'kindling' }, signal);
    assert.deepEqual([started.code, started.output], [0, 'back again\n']);
    await containerd.removeImage(lostReference, signal);

    await containerd.removeImage(reference, signal);
    await rig.cleanup();
    assert.deepEqual(await rig.list(), []);
    for (const layer of [first, third]) assert.ok(layers.released.includes(layer));
  } finally {
    client.close();
    await registryClient.close();
  }
});
