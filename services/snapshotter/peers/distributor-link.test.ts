import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { test } from 'node:test';
import { LocalBus } from '#shared/bus/local-bus.ts';
import { sha256 } from '#shared/digest/digest.ts';
import { textOfPublicKey } from '#shared/distribution/capability.ts';
import { DISTRIBUTION_VERSION, encodeMessage, SUBJECTS } from '#shared/distribution/messages.ts';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { Registry } from '#shared/telemetry/metrics.ts';
import { DistributorLink } from './distributor-link.ts';
import { PeerMetrics } from './peer-metrics.ts';

const { signal } = new AbortController();
const { privateKey } = generateKeyPairSync('ed25519');
const layer = sha256(Buffer.from('a layer'));

test('of two distributors one stands still: each question is answered by the other, and the distributor counts as there', async () => {
  await using bus = new LocalBus();
  const answers = {
    [SUBJECTS.hello]: {
      version: DISTRIBUTION_VERSION,
      epoch: 'first',
      publicKey: textOfPublicKey(privateKey),
      renewMs: 60_000,
    },
    [SUBJECTS.locate]: { leased: [7], elsewhere: [] },
  };
  const stillFor: string[] = [];
  for (const [subject, answer] of Object.entries(answers)) {
    bus.messages.respond(subject, 'd', () => {
      stillFor.push(subject);
      return new Promise(() => {});
    });
    bus.messages.respond(subject, 'd', () => Promise.resolve(encodeMessage(answer)));
  }
  const metrics = new PeerMetrics(new Registry());
  await using link = new DistributorLink({
    bus,
    record: { node: 'a', host: '127.0.0.1', port: 1, zone: '', tls: false },
    logger: silentLogger,
    metrics,
    figures: () => Promise.resolve({ registryBytes: 0, peerBytes: 0, givenBytes: 0, feeds: [] }),
  });
  await link.settled();
  while (!link.up) await new Promise((resolve) => setTimeout(resolve, 5));
  for (let i = 0; i < 2; i++) {
    const { leased } = await link.locate({ layer, spans: [7], without: [], slow: [] }, signal);
    assert.deepEqual(leased, [7]);
  }
  assert.equal(link.up, true);
  assert.ok(stillFor.includes(SUBJECTS.locate), 'it was asked');
});
