import assert from 'node:assert/strict';
import { test } from 'node:test';
import { sha256 } from '#shared/digest/digest.ts';
import type { ViewReply } from '#shared/distribution/messages.ts';
import { textOf } from './cluster.ts';

const MiB = 1024 * 1024;

function view(more: Partial<ViewReply>): ViewReply {
  return { epoch: 'e', registries: ['*'], nodeCount: 0, nodes: [], layers: [], ...more };
}

function node(name: string, figures?: ViewReply['nodes'][number]['figures'], suspected = false) {
  return { record: { node: name, host: '10.0.0.1', port: 8461, zone: '', tls: false }, figures, suspected };
}

test('who feeds whom, and how often the registry was read, are told', () => {
  const layer = sha256(Buffer.from('layer'));
  const counts = { members: 2, held: 8, copies: 16, reads: 9, readSpans: 8, leases: 0, unread: 0 };
  const feeds = [{ node: 'a', bytes: 5 * MiB }];
  const text = textOf(
    view({
      nodeCount: 3,
      nodes: [
        node('b', { registryBytes: 3 * MiB, peerBytes: 5 * MiB, givenBytes: 0, feeds }),
        node('a', { registryBytes: 5 * MiB, peerBytes: 0, givenBytes: 5 * MiB, feeds: [] }, true),
      ],
      layers: [{ layer, spanCount: 10, ...counts }],
    }),
    20,
  );
  assert.match(text, /^3 nodes, 1 layers; 8.00 MiB from the registry, 5.00 MiB from node to node; .* read 1\.13 times/);
  assert.match(text, /^a ! .*5\.00 MiB +0 B +5\.00 MiB$/m);
  assert.match(text, /^b .*3\.00 MiB +5\.00 MiB +0 B +a 5\.00 MiB$/m);
  assert.match(text, new RegExp(`^${layer.slice(7, 19)} +2 +8/10 +2\\.0 +1\\.13 +0 +0$`, 'm'));
  assert.match(text, /^1 more nodes$/m);
  assert.match(text, /several nodes report/);
  assert.doesNotMatch(text, /Sharing is off/);
});

test('that sharing is off is told together with what to set', () => {
  const text = textOf(view({ registries: [], nodeCount: 1, nodes: [node('a')] }), 20);
  assert.match(text, /Sharing is off: .*\n.*KINDLING_DISTRIBUTOR_REGISTRIES/);
});
