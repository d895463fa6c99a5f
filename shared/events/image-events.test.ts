import assert from 'node:assert/strict';
import { test } from 'node:test';
import { sha256 } from '#shared/digest/digest.ts';
import { CloudEventError } from './cloud-event.ts';
import { checkData, dedupeId, fromBus, toBus, type KindlingEvent } from './image-events.ts';
import { parseNotification } from './registry-notification.ts';

const digest = sha256(Buffer.from('x'));
const json = (value: unknown) => Buffer.from(JSON.stringify(value));

test('an event goes over the bus and comes back as it was', () => {
  const event: KindlingEvent<'image.indexed'> = {
    type: 'image.indexed',
    id: '1',
    source: 'kindling/indexer',
    data: {
      image: 'r.example/a:1',
      digest,
      cause: 'push',
      layers: [{ layer: digest, sizeBytes: 5, state: 'indexed', format: 'gzip' }],
    },
  };
  const sent = toBus(event, new Date(0));
  assert.equal(sent.subject, 'kindling.events.image.indexed');
  assert.deepEqual(fromBus('image.indexed', sent.payload), event);
  assert.throws(() => fromBus('image.pushed', sent.payload), CloudEventError);
});

test('events with other data than their type says are refused', () => {
  assert.throws(() => checkData('image.pushed', { image: '' }), CloudEventError);
  assert.throws(() => checkData('image.pushed', { image: 'a', digest: 'sha256:12' }), CloudEventError);
  assert.throws(() => checkData('function.deployed', undefined), CloudEventError);
  assert.throws(() => checkData('image.indexed', { image: 'a', digest, cause: 'push', layers: [{}] }), CloudEventError);
});

test('two different pairs of source and id never share a dedupe id', () => {
  assert.equal(dedupeId('a', 'b'), dedupeId('a', 'b'));
  assert.notEqual(dedupeId('a","b', 'c'), dedupeId('a', 'b","c'));
  assert.match(dedupeId('ä\n', ''), /^[\w-]{43}$/);
});

const target = {
  mediaType: 'application/vnd.oci.image.manifest.v1+json',
  digest,
  size: 1,
  repository: 'team/app',
  tag: 'v1',
  url: 'http://evil',
};
const pushed = {
  id: 'e1',
  timestamp: 'x',
  action: 'push',
  target,
  request: { host: 'r.example:5000' },
  actor: {},
  source: {},
};

test('only pushes of manifests are taken from a notification of a registry', () => {
  const events = [
    pushed,
    { ...pushed, id: 'e2', action: 'pull' },
    { ...pushed, id: 'e3', target: { ...target, mediaType: 'application/octet-stream' } },
    { ...pushed, id: 'e4', target: { ...target, tag: undefined } },
    { ...pushed, id: 'e5', target: { ...target, tag: `sha256-${'a'.repeat(64)}` } },
    { ...pushed, id: 'e6', target: { ...target, digest: 'md5:1' } },
    null,
    'x',
  ];
  assert.deepEqual(parseNotification(json({ events })), [
    { id: 'e1', host: 'r.example:5000', repository: 'team/app', tag: 'v1', digest },
    { id: 'e4', host: 'r.example:5000', repository: 'team/app', tag: undefined, digest },
  ]);
});

test('what is not a notification is refused', () => {
  for (const body of [
    Buffer.from('{'),
    json([]),
    json({}),
    json({ events: {} }),
    json({ events: Array.from({ length: 2000 }, () => 1) }),
  ]) {
    assert.throws(() => parseNotification(body), CloudEventError);
  }
});
