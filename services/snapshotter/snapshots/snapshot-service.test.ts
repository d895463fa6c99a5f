import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { sha256, type Digest } from '#shared/digest/digest.ts';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { Registry } from '#shared/telemetry/metrics.ts';
import { NotLazyError, type LayerProvider, type LayerRequest } from './layer-provider.ts';
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
  lazy = true;
  provide(request: LayerRequest): Promise<{ readonly path: string }> {
    if (!this.lazy) return Promise.reject(new NotLazyError('unreachable', 'the registry is away'));
    this.provided.push(request);
    this.here.add(request.layer);
    return Promise.resolve({ path: `/m/${request.layer.slice(7, 19)}` });
  }
  mountOf(layer: Digest): Promise<string> {
    if (!this.here.has(layer)) return Promise.reject(new NotLazyError('no-index', `${layer} is not on this node`));
    return Promise.resolve(`/m/${layer.slice(7, 19)}`);
  }
  usage(): { readonly sizeBytes: number; readonly inodes: number } {
    return { sizeBytes: 0, inodes: 0 };
  }
  release(): Promise<void> {
    return Promise.resolve();
  }
}

test('a layer that the node has lost is provided anew from what the snapshot knows of it', { skip }, async () => {
  const layers = new FakeLayers();
  let now = 0n;
  const service = new SnapshotService({
    store: new SnapshotStore(join(root, 'a.db'), () => ++now),
    folders: new SnapshotFolders(join(root, 's')),
    layers,
    logger: silentLogger,
    metrics: new Registry(),
  });
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

  layers.here.clear();
  layers.lazy = false;
  await assert.rejects(service.view('other', chain, {}, never), { code: 'unavailable', message: /registry is away/ });
  await service.close();
});
