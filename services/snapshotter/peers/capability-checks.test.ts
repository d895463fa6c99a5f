import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { test } from 'node:test';
import { sha256 } from '#shared/digest/digest.ts';
import { issueCapability, issueReporter } from '#shared/distribution/capability.ts';
import { CapabilityChecks } from './capability-checks.ts';

const layer = sha256(Buffer.from('layer'));
const record = { node: 'n1', host: '10.0.0.1', port: 8461, zone: '', tls: false };

test('a capability is good for its layer until it has ended, also when it was shown before', () => {
  const { privateKey, publicKey } = generateKeyPairSync('ed25519');
  const checks = new CapabilityChecks(() => publicKey);
  const shown = `Kindling ${issueCapability({ layer, record, expiresMs: 1_000_000 }, privateKey)}`;
  for (const nowMs of [0, 999_999]) assert.deepEqual(checks.check(shown, layer, nowMs)?.record, record);
  assert.equal(checks.check(shown, sha256(Buffer.from('other')), 0), undefined);
  assert.equal(checks.check(shown, layer, 2_000_000), undefined);
});

test('nothing else gives a right: no key yet, another key, another scheme, the right to report', () => {
  const { privateKey, publicKey } = generateKeyPairSync('ed25519');
  const right = { layer, record, expiresMs: 1_000_000 };
  const capability = issueCapability(right, privateKey);
  let key: typeof publicKey | undefined;
  const checks = new CapabilityChecks(() => key);
  assert.equal(checks.check(`Kindling ${capability}`, layer, 0), undefined);
  key = publicKey;
  assert.ok(checks.check(`Kindling ${capability}`, layer, 0));
  for (const shown of [undefined, `Bearer ${capability}`, `Kindling ${issueReporter(right, privateKey)}`]) {
    assert.equal(checks.check(shown, layer, 0), undefined);
  }
  key = generateKeyPairSync('ed25519').publicKey;
  assert.equal(checks.check(`Kindling ${capability}`, layer, 0), undefined, 'the directory was lost, with its key');
});
