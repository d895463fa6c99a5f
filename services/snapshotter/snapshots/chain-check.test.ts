import assert from 'node:assert/strict';
import { test } from 'node:test';
import { sha256 } from '#shared/digest/digest.ts';
import { contradictsChain, isContested } from './chain-check.ts';
import { remoteLabels, TARGET_LABEL } from './remote-labels.ts';

const [base, app, other] = ['base', 'app', 'other'].map((name) => sha256(Buffer.from(name)));
assert.ok(base && app && other);
const chain = sha256(Buffer.from(`${base} ${app}`));

test('a lowest layer is named by its own tar', () => {
  assert.equal(contradictsChain(base, undefined, base), false);
  assert.equal(contradictsChain(base, undefined, other), true);
});

test('a further layer is named by its tar and what is below it, however containerd calls that', () => {
  const parents = [
    { name: base, labels: {} },
    { name: `default/12/${base}`, labels: {} },
    { name: `${base}@default/3/x`, labels: {} },
    { name: 'anything', labels: { [TARGET_LABEL]: base } },
  ];
  for (const parent of parents) {
    assert.equal(contradictsChain(chain, parent, app), false, parent.name);
    assert.equal(contradictsChain(chain, parent, other), true, parent.name);
    assert.equal(contradictsChain(other, parent, app), true, parent.name);
  }
});

test('keys that are no chain IDs say nothing', () => {
  assert.equal(contradictsChain('my-snapshot', undefined, base), false);
  assert.equal(contradictsChain(chain, { name: 'default/7/my-parent', labels: {} }, app), false);
});

test('a snapshot made of another blob is contested until its tar is known to be the one that is asked for', () => {
  const from = (imageReference: string, layer = app) => ({
    imageReference,
    layer,
    sizeBytes: 1,
    mediaType: undefined,
    annotations: {},
    manifest: undefined,
  });
  const snapshot = { layer: other, labels: remoteLabels(base, from('r.example/a:1', other)) };
  const contested = (reference: string, tar?: typeof base) =>
    isContested(snapshot, undefined, from(reference), () => tar);
  assert.equal(contested('r.example/b:1'), true);
  assert.equal(contested('no reference'), true);
  assert.equal(contested('r.example/a:2'), false);
  assert.equal(contested('r.example/b:1', base), false);
  assert.equal(contested('r.example/a:2', app), true);
  assert.equal(
    isContested(snapshot, undefined, from('r.example/b:1', other), () => undefined),
    false,
  );
  assert.equal(
    isContested({ ...snapshot, layer: undefined }, undefined, from('r.example/b:1'), () => undefined),
    false,
  );
});
