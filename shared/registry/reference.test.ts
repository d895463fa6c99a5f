import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { formatReference, ImageReferenceError, parseReference } from './reference.ts';

const hex = 'a'.repeat(64);

test('references are read as Docker and containerd read them', () => {
  const cases: readonly (readonly [string, string, string, string | undefined])[] = [
    ['python', 'docker.io', 'library/python', 'latest'],
    ['python:3.13-slim', 'docker.io', 'library/python', '3.13-slim'],
    ['docker.io/python', 'docker.io', 'library/python', 'latest'],
    ['index.docker.io/library/python', 'docker.io', 'library/python', 'latest'],
    ['me/app', 'docker.io', 'me/app', 'latest'],
    ['localhost/app', 'localhost', 'app', 'latest'],
    ['localhost:5000/a/b/c:v1', 'localhost:5000', 'a/b/c', 'v1'],
    ['127.0.0.1:5000/a__b/c-d.e', '127.0.0.1:5000', 'a__b/c-d.e', 'latest'],
    ['[::1]:5000/app:v', '[::1]:5000', 'app', 'v'],
    ['Registry.Example/app', 'registry.example', 'app', 'latest'],
    [`ghcr.io/o/app@sha256:${hex}`, 'ghcr.io', 'o/app', undefined],
    [`ghcr.io/o/app:v1@sha256:${hex}`, 'ghcr.io', 'o/app', 'v1'],
  ];
  for (const [text, host, path, tag] of cases) {
    const parsed = parseReference(text);
    assert.deepEqual([parsed.host, parsed.path, parsed.tag], [host, path, tag], text);
    assert.equal(parsed.repository, `${host}/${path}`);
    assert.equal(parsed.digest, text.includes('@') ? `sha256:${hex}` : undefined);
    assert.deepEqual(parseReference(formatReference(parsed)), parsed);
  }
});

test('what is no reference is refused with a reason', () => {
  const bad = ['', ':', '@', 'a b', 'a//b', '/a', 'a/', 'host.io/', 'a:', 'a:-tag', 'a@sha256:12', 'a.b:99999/c'];
  for (const text of [
    ...bad,
    'a/../b',
    'x'.repeat(300),
    'y'.repeat(600),
    `a@sha512:${hex}`,
    'a?b',
    'h.io/a#b',
    'user@h.io/a',
  ]) {
    assert.throws(() => parseReference(text), ImageReferenceError, text);
  }
});

test('any text is either refused or names a host and path that are safe in a URL', () => {
  fc.assert(
    fc.property(fc.oneof(fc.string({ maxLength: 60 }), fc.stringMatching(/^[a-z0-9.:/@_-]{0,40}$/)), (text) => {
      try {
        const { host, path } = parseReference(text);
        const url = new URL(`https://${host}/v2/${path}/blobs/x`);
        assert.equal(url.pathname, `/v2/${path}/blobs/x`);
      } catch (error) {
        assert.ok(error instanceof ImageReferenceError, `${String(error)} for ${text}`);
      }
    }),
    { numRuns: 500 },
  );
});
