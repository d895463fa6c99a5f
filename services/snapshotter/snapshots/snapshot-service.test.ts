import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { sha256, type Digest } from '#shared/digest/digest.ts';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { Registry } from '#shared/telemetry/metrics.ts';
import { NotLazyError, type LayerProvider, type LayerRequest, type ProvidedLayer } from './layer-provider.ts';
import { remoteLabels } from './remote-labels.ts';
import { SnapshotFolders } from './snapshot-folders.ts';
import { SnapshotService } from './snapshot-service.ts';
import { SnapshotStore } from './snapshot-store.ts';

const root = await mkdtemp(join(tmpdir(), 'kindling-snapshots-'));
after(() => rm(root, { recursive: true }));
const never = new AbortController().signal;
const skip = process.getuid?.() === 0 ? false : 'needs root: folders of snapshots belong to it';

/** Provides every layer; forgets them when told to. */
class FakeLayers implements LayerProvider {
  readonly provided: LayerRequest[] = [];
  readonly here = new Set<Digest>();
  readonly tars = new Map<Digest, Digest>();
  /** What is known by others. */
  readonly learned = new Map<Digest, Digest>();
  lazy = true;
  gate = Promise.resolve();
  async provide(request: LayerRequest): Promise<ProvidedLayer> {
    await this.gate;
    if (!this.lazy) throw new NotLazyError('unreachable', 'the registry is away');
    this.provided.push(request);
    this.here.add(request.layer);
    return { path: `/m/${request.layer.slice(7, 19)}`, diffId: this.tars.get(request.layer) };
  }
  mountOf(layer: Digest): Promise<string> {
    if (!this.here.has(layer)) return Promise.reject(new NotLazyError('no-index', `${layer} is not on this node`));
    return Promise.resolve(`/m/${layer.slice(7, 19)}`);
  }
  tarOf(layer: Digest): Digest | undefined {
    return this.tars.get(layer);
  }
  learnTar({ layer }: LayerRequest): Promise<void> {
    const tar = this.learned.get(layer);
    if (tar !== undefined) this.tars.set(layer, tar);
    return Promise.resolve();
  }
  usage(): { readonly sizeBytes: number; readonly inodes: number } {
    return { sizeBytes: 0, inodes: 0 };
  }
  release(): Promise<void> {
    return Promise.resolve();
  }
}

function open(name: string, layers: LayerProvider): SnapshotService {
  let now = 0n;
  return new SnapshotService({
    store: new SnapshotStore(join(root, `${name}.db`), () => ++now),
    folders: new SnapshotFolders(join(root, name)),
    layers,
    logger: silentLogger,
    metrics: new Registry(),
  });
}

test('a layer that the node has lost is provided anew from what the snapshot knows of it', { skip }, async () => {
  const layers = new FakeLayers();
  const service = open('a', layers);
  await service.start(never);
  const request: LayerRequest = {
    imageReference: 'r.example/app:1',
    layer: sha256(Buffer.from('a layer')),
    sizeBytes: 1000,
    mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip',
    annotations: { 'containerd.io/snapshot/stargz/toc.digest': sha256(Buffer.from('a TOC')) },
    manifest: undefined,
  };
  const chain = sha256(Buffer.from('a chain'));
  await assert.rejects(service.prepare('key', '', remoteLabels(chain, request), never), { code: 'already-exists' });
  assert.equal(layers.provided.length, 1);

  layers.here.clear();
  const mounts = await service.view('view', chain, {}, never);
  assert.match(mounts[0]?.source ?? '', /^\/m\//);
  assert.deepEqual(layers.provided[1], layers.provided[0]);

  // Whoever has read it whole by now says that it is another.
  layers.here.clear();
  layers.tars.set(request.layer, sha256(Buffer.from('another tar')));
  await assert.rejects(service.view('again', chain, {}, never), { code: 'unavailable', message: /names another/ });
  layers.tars.clear();

  layers.here.clear();
  layers.lazy = false;
  await assert.rejects(service.view('other', chain, {}, never), { code: 'unavailable', message: /registry is away/ });
  await service.close();
});

const digestOf = (text: string): Digest => sha256(Buffer.from(text));
const ask = (imageReference: string, layer: Digest): LayerRequest => ({
  imageReference,
  layer,
  sizeBytes: 1000,
  mediaType: undefined,
  annotations: {},
  manifest: undefined,
});

test('a snapshot of a blob whose tar nobody has checked does not stand for a layer of an image from elsewhere', {
  skip,
}, async () => {
  const layers = new FakeLayers();
  const service = open('b', layers);
  await service.start(never);
  const [tar, evil, honest, above] = ['tar', 'evil', 'honest', 'above'].map(digestOf) as [
    Digest,
    Digest,
    Digest,
    Digest,
  ];
  const chain = sha256(Buffer.from(`${tar} ${digestOf('tar above')}`));
  layers.tars.set(honest, tar);
  layers.tars.set(above, digestOf('tar above'));
  const there = { code: 'already-exists' };
  const forEvil = ask('r.example/evil:1', evil);
  const forHonest = ask('r.example/base:1', honest);
  await assert.rejects(service.prepare('k1', '', remoteLabels(tar, forEvil), never), there);
  await assert.rejects(service.prepare('k2', tar, remoteLabels(chain, ask('r.example/evil:1', above)), never), there);
  const running = await service.prepare('running', chain, {}, never);

  await service.remote.settle(tar, '', ask('r.example/evil:2', digestOf('its next blob')), never);
  assert.equal(service.stat(tar).layer, evil, 'who may push there may replace the image as well');
  await service.remote.settle(tar, '', forHonest, never);
  assert.equal(service.stat(tar).layer, honest);
  const names = [...service.list([])].map(({ name }) => name);
  assert.deepEqual(names.toSorted(), [`${tar}@replaced-1`, chain, 'running', tar].toSorted());
  assert.equal([...service.list([`labels."containerd.io/snapshot.ref"==${tar}`])].length, 1);
  assert.equal(service.stat(chain).parent, tar);
  const later = await service.view('later', chain, {}, never);
  assert.match(JSON.stringify(later), new RegExp(`/m/${honest.slice(7, 19)}`));
  assert.match(JSON.stringify(running), new RegExp(`/m/${evil.slice(7, 19)}`));
  await service.remote.settle(tar, '', forEvil, never);
  assert.equal(service.stat(tar).layer, honest, 'what was checked stands for all');
  await service.close();
});

test('what is learned of a tar when its image is pulled again makes its snapshot good for all, or for nobody', {
  skip,
}, async () => {
  const layers = new FakeLayers();
  const service = open('e', layers);
  await service.start(never);
  const [tar, chunked, gzip, evil] = ['tar', 'chunked', 'gzip', 'evil'].map(digestOf) as [
    Digest,
    Digest,
    Digest,
    Digest,
  ];
  const there = { code: 'already-exists' };
  const forChunked = ask('r.example/a:1', chunked);
  await assert.rejects(service.prepare('k1', '', remoteLabels(tar, forChunked), never), there);
  layers.learned.set(chunked, tar);
  await service.remote.settle(tar, '', ask('r.example/b:1', gzip), never);
  assert.equal(service.stat(tar).layer, chunked, 'it is the same');

  const other = digestOf('other tar');
  const forEvil = ask('r.example/evil:1', evil);
  await assert.rejects(service.prepare('k2', '', remoteLabels(other, forEvil), never), there);
  await service.remote.settle(other, '', forEvil, never);
  layers.learned.set(evil, digestOf('yet another tar'));
  await assert.rejects(service.remote.settle(other, '', forEvil, never), {
    code: 'failed-precondition',
    message: /its tar has the digest/,
  });
  await service.close();
});

test('of two images that want different layers under one chain ID at the same moment, the checked one stands', {
  skip,
}, async () => {
  const layers = new FakeLayers();
  const service = open('d', layers);
  await service.start(never);
  const [tar, evil, honest] = ['tar', 'evil', 'honest'].map(digestOf) as [Digest, Digest, Digest];
  layers.tars.set(honest, tar);
  const gate = Promise.withResolvers<void>();
  layers.gate = gate.promise;
  const requests = [ask('r.example/evil:1', evil), ask('r.example/base:1', honest), ask('r.example/evil:1', evil)];
  const prepared = requests.map((request, i) => service.prepare(`k${i}`, '', remoteLabels(tar, request), never));
  const outcomes = prepared.map((each) => assert.rejects(each, { code: 'already-exists' }));
  gate.resolve();
  await Promise.all(outcomes);
  assert.equal(service.stat(tar).layer, honest);
  await service.close();
});

test('where nothing that was checked can take the place of such a snapshot, the pull is refused', {
  skip,
}, async () => {
  const layers = new FakeLayers();
  const service = open('c', layers);
  await service.start(never);
  const [tar, evil, other] = ['tar', 'evil', 'other'].map(digestOf) as [Digest, Digest, Digest];
  await assert.rejects(service.prepare('k', '', remoteLabels(tar, ask('r.example/evil:1', evil)), never));
  const refused = {
    code: 'failed-precondition',
    message: /made of layer .* of r\.example\/evil:1, whose tar was not checked/,
  };
  const request = ask('r.example/base:1', other);
  await assert.rejects(service.prepare('k', '', remoteLabels(tar, request), never), refused);
  await assert.rejects(service.remote.settle(tar, '', request, never), refused);
  layers.tars.set(other, digestOf('another tar'));
  await assert.rejects(service.remote.settle(tar, '', request, never), refused);
  layers.lazy = false;
  await assert.rejects(service.remote.settle(tar, '', request, never), refused);
  assert.equal(service.stat(tar).layer, evil);
  await service.close();
});
