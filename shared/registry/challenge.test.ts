import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { parseChallenge } from './challenge.ts';

test('challenges are read as registries write them', () => {
  const bearer = {
    kind: 'bearer',
    realm: 'https://auth.example/token',
    service: 'registry',
    scope: 'repository:a/b:pull,push',
  };
  const text = 'Bearer realm="https://auth.example/token",service="registry",scope="repository:a/b:pull,push"';
  assert.deepEqual(parseChallenge(text), bearer);
  assert.deepEqual(parseChallenge(`Basic realm="x", ${text}, error="invalid_token"`), bearer);
  assert.deepEqual(parseChallenge(`${text}, Basic realm="other"`), bearer);
  assert.deepEqual(parseChallenge('bearer Realm=https://auth.example/token'), {
    ...bearer,
    service: undefined,
    scope: undefined,
  });
  assert.deepEqual(parseChallenge('BASIC realm="Bearer realm=x"'), { kind: 'basic' });
  assert.deepEqual(parseChallenge('Basic'), { kind: 'basic' });
  for (const none of ['', 'Negotiate', 'Bearer', 'Digest realm="x"', 'Bearer error="x"']) {
    assert.equal(parseChallenge(none), undefined, none);
  }
});

test('any header is read without failing', () => {
  fc.assert(
    fc.property(fc.string(), (text) => void parseChallenge(text)),
    { numRuns: 500 },
  );
});
