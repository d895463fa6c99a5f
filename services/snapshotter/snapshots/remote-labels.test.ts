import assert from 'node:assert/strict';
import { test } from 'node:test';
import { sha256 } from '#shared/digest/digest.ts';
import { remoteLabels, remoteRequest } from './remote-labels.ts';

const layer = sha256(Buffer.from('layer'));
const manifest = sha256(Buffer.from('manifest'));
const target = { 'containerd.io/snapshot.ref': 'sha256:chain' };

test('CRI names the layer behind a snapshot', () => {
  const labels = {
    ...target,
    'containerd.io/snapshot/cri.image-ref': 'registry.example/a/b:1',
    'containerd.io/snapshot/cri.layer-digest': layer,
    'containerd.io/snapshot/cri.manifest-digest': manifest,
    'containerd.io/snapshot/cri.image-layers': `${layer},${layer}`,
  };
  const request = remoteRequest(labels);
  assert.equal(request?.target, 'sha256:chain');
  assert.deepEqual(
    [request?.layer.imageReference, request?.layer.layer, request?.layer.manifest, request?.layer.sizeBytes],
    ['registry.example/a/b:1', layer, manifest, undefined],
  );
});

test('Clients of the established remote snapshotter are understood, with the TOC digest', () => {
  const request = remoteRequest({
    ...target,
    'containerd.io/snapshot/remote/stargz.reference': 'registry.example/a/b:1',
    'containerd.io/snapshot/remote/stargz.digest': layer,
    'containerd.io/snapshot/stargz/toc.digest': manifest,
  });
  assert.equal(request?.layer.layer, layer);
  assert.equal(request?.layer.annotations['containerd.io/snapshot/stargz/toc.digest'], manifest);
});

test('Our own labels carry a request unchanged', () => {
  const request = {
    imageReference: 'registry.example/a/b:1',
    layer,
    sizeBytes: 12345,
    mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip',
    manifest,
    annotations: { 'containerd.io/snapshot/stargz/toc.digest': manifest, 'io.example.position': '1:2:3:4' },
  };
  const labels = { ...remoteLabels('sha256:chain', request) };
  const back = remoteRequest(labels);
  assert.deepEqual(back, { target: 'sha256:chain', layer: request });
});

test('Without a target, a reference or a digest there is nothing to provide', () => {
  const digest = { 'containerd.io/snapshot/cri.layer-digest': layer };
  const reference = { 'containerd.io/snapshot/cri.image-ref': 'registry.example/a' };
  for (const labels of [
    {},
    target,
    { ...digest, ...reference },
    { ...target, ...digest },
    { ...target, ...reference },
    { ...target, ...reference, 'containerd.io/snapshot/cri.layer-digest': 'sha512:abc' },
    { ...target, ...digest, 'containerd.io/snapshot/cri.image-ref': 'x'.repeat(5000) },
  ]) {
    assert.equal(remoteRequest(labels), undefined);
  }
});

test('An annotation too long for a label is left out', () => {
  const request = { imageReference: 'a', layer, sizeBytes: undefined, mediaType: undefined, manifest: undefined };
  const labels = remoteLabels('x', { ...request, annotations: { long: 'x'.repeat(4000), short: 'y' } });
  assert.deepEqual(remoteRequest(labels)?.layer.annotations, { short: 'y' });
});
