import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { EventEmitter, once } from 'node:events';
import { test } from 'node:test';
import { LocalBus } from '#shared/bus/local-bus.ts';
import { loadSettings } from '#shared/config/settings.ts';
import { textOfPublicKey } from '#shared/distribution/capability.ts';
import {
  decodeMessage,
  DISTRIBUTION_VERSION,
  encodeMessage,
  joinRequest,
  SUBJECTS,
  updateMessage,
  type JoinRequest,
  type UpdateMessage,
} from '#shared/distribution/messages.ts';
import { SpanSet } from '#shared/distribution/span-set.ts';
import { fakeMember, fakeTar, indexOfTar } from '#shared/layer/fake-layer.ts';
import { buildLayerImage } from '#shared/layer/layer-image.ts';
import { parseSpanMap } from '#shared/layer/span-map-file.ts';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { Registry } from '#shared/telemetry/metrics.ts';
import type { SpanRequest } from '../layers/span-source.ts';
import { Peers } from './peers.ts';
import { peerSettings } from './peer-settings.ts';

const SPAN_BYTES = 4096;
const signal = new AbortController().signal;
const { privateKey } = generateKeyPairSync('ed25519');
const index = indexOfTar(fakeTar([fakeMember('file', 'file', Buffer.alloc(8 * SPAN_BYTES, 'x'))]), SPAN_BYTES);
const layer = index.layer;
const map = parseSpanMap(buildLayerImage(index).map);

type Changed = Extract<UpdateMessage, { readonly kind: 'changed' }>;

/** One node, and a distributor that says what the test wants. Its registry gives nothing until it is aborted. */
async function nodeWith(members: number) {
  await using closing = new AsyncDisposableStack();
  const bus = closing.use(new LocalBus());
  const said = new EventEmitter();
  const joins: { readonly request: JoinRequest; readonly answer: () => void }[] = [];
  const updates: Changed[] = [];
  const left: string[] = [];
  const reads: SpanRequest[] = [];
  const answerHello = async (): Promise<Uint8Array> =>
    encodeMessage({
      version: DISTRIBUTION_VERSION,
      epoch: 'first',
      publicKey: textOfPublicKey(privateKey),
      renewMs: 60_000,
    });
  closing.use(bus.messages.respond(SUBJECTS.hello, 'd', answerHello));
  closing.use(
    bus.messages.respond(SUBJECTS.join, 'd', async (bytes) => {
      const { promise, resolve } = Promise.withResolvers<void>();
      joins.push({ request: decodeMessage(joinRequest, bytes, 'a request to join'), answer: resolve });
      said.emit('join');
      await promise;
      const granted = { capability: 'c', reporter: 'r', expiresInMs: 600_000 };
      return encodeMessage({ outcome: 'joined', epoch: 'first', ...granted, members, neighbours: [] });
    }),
  );
  closing.use(
    bus.messages.subscribe(SUBJECTS.update, 'd', (bytes) => {
      const update = decodeMessage(updateMessage, bytes, 'an update');
      if (update.kind === 'changed') updates.push(update);
      if (update.kind === 'left') left.push(update.layer);
      said.emit('update');
    }),
  );
  const peers = closing.use(
    await Peers.open({
      values: loadSettings(peerSettings, { KINDLING_PEER_LISTEN: '127.0.0.1:0' }),
      nodeName: 'n1',
      bus,
      holder: {
        layers: () => [],
        get: () => undefined,
        has: () => false,
        readPayload: () => Promise.resolve(undefined),
        hurry: () => Promise.resolve(),
        onResident: () => () => {},
        onRemoved: () => () => {},
      },
      registry: { authorizationOf: () => Promise.resolve(undefined) },
      source: {
        name: 'registry',
        fetch: async (request, _deliver, ends) => {
          reads.push(request);
          said.emit('read');
          await once(ends, 'abort');
        },
        rejected: () => {},
      },
      metrics: new Registry(),
      logger: silentLogger,
    }),
  );
  await peers.link.settled();
  const repository = '127.0.0.1:5000/r';
  const target = { layer, map, origins: [{ repository, layer, sizeBytes: map.blobSize, mediaType: '' }] };
  const fetch = (first: number, last: number): void => {
    const request: SpanRequest = { ...target, first, last, priority: 'demand' };
    void peers.source.fetch(request, () => undefined, signal).catch(() => {});
  };
  const until = async (what: 'join' | 'update' | 'read', holds: () => boolean): Promise<void> => {
    while (!holds()) await once(said, what);
  };
  const kept = closing.move();
  return { peers, target, joins, updates, left, reads, fetch, until, [Symbol.asyncDispose]: () => kept.disposeAsync() };
}

const spansOf = (wants: string | undefined): number[] => [...SpanSet.fromText(map.spanCount, wants ?? '').spans()];

test('what is wanted while a node joins is told to the distributor as soon as it has joined', async () => {
  await using node = await nodeWith(2);
  node.fetch(1, 1);
  await node.until('join', () => node.joins.length > 0);
  assert.deepEqual(spansOf(node.joins[0]?.request.wants), [1]);
  // It is on its way to the distributor already, and knows nothing of this.
  node.fetch(3, 4);
  await new Promise((resolve) => setImmediate(resolve));
  node.joins[0]?.answer();
  await node.until('update', () => node.updates.some(({ wants }) => wants !== undefined));
  const said = node.updates.find(({ wants }) => wants !== undefined);
  assert.deepEqual(spansOf(said?.wants), [1, 3, 4]);
});

test('a layer that is expected to be read is joined before anything of it is wanted, once', async () => {
  await using node = await nodeWith(1);
  node.peers.source.expected(node.target);
  node.peers.source.expected(node.target);
  await node.until('join', () => node.joins.length > 0);
  assert.deepEqual(spansOf(node.joins[0]?.request.wants), []);
  node.joins[0]?.answer();
  node.fetch(2, 5);
  await node.until('read', () => node.reads.length > 0);
  // Nobody else is there: in one request, as the scheduler put it together.
  assert.deepEqual(
    node.reads.map(({ first, last }) => [first, last]),
    [[2, 5]],
  );
  assert.equal(node.joins.length, 1);
});

test('a node that nothing of a layer was wanted on does not stay among those who share it', async () => {
  await using node = await nodeWith(2);
  node.peers.source.expected(node.target);
  await node.until('join', () => node.joins.length > 0);
  node.joins[0]?.answer();
  await node.until('update', () => node.left.length > 0);
  assert.deepEqual(node.left, [layer]);
  node.peers.source.expected(node.target);
  await node.until('join', () => node.joins.length > 1);
  node.joins[1]?.answer();
});
