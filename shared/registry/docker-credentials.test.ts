import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { DockerCredentials } from './docker-credentials.ts';

const signal = new AbortController().signal;

test('credentials come from helper, store and file, in that order', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'kindling-credentials-'));
  const path = process.env['PATH'];
  try {
    process.env['PATH'] = `${folder}:${path}`;
    const helper = (name: string, script: string) =>
      writeFile(join(folder, `docker-credential-${name}`), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
    await helper('one', 'read host; printf \'{"ServerURL":"%s","Username":"u-%s","Secret":"s"}\' "$host" "$host"');
    await helper('token', 'cat >/dev/null; echo \'{"Username":"<token>","Secret":"refresh"}\'');
    await helper('none', 'cat >/dev/null; echo "credentials not found in native keychain"; exit 1');
    await helper('broken', 'cat >/dev/null; exit 3');
    const file = join(folder, 'config.json');
    const auth = Buffer.from('me:pass:word').toString('base64');
    await writeFile(
      file,
      JSON.stringify({
        auths: {
          'https://index.docker.io/v1/': { auth },
          'plain.example:5000': { username: 'a', password: 'b' },
          'identity.example': { auth, identitytoken: 'idt' },
          'empty.example': {},
        },
        credHelpers: {
          'one.example': 'one',
          'token.example': 'token',
          'broken.example': 'broken',
          'evil.example': '../x',
        },
        credsStore: 'none',
      }),
    );
    const source = new DockerCredentials(file);
    const get = (host: string) => source.credential(host, signal);
    assert.deepEqual(await get('one.example'), { kind: 'password', username: 'u-one.example', password: 's' });
    assert.deepEqual(await get('token.example'), { kind: 'identity-token', identityToken: 'refresh' });
    assert.deepEqual(await get('docker.io'), { kind: 'password', username: 'me', password: 'pass:word' });
    assert.deepEqual(await get('plain.example:5000'), { kind: 'password', username: 'a', password: 'b' });
    assert.deepEqual(await get('identity.example'), { kind: 'identity-token', identityToken: 'idt' });
    assert.equal(await get('empty.example'), undefined);
    assert.equal(await get('unknown.example'), undefined);
    await assert.rejects(get('broken.example'), { code: 'unauthorized', message: /status 3/ });
    await assert.rejects(get('evil.example'), { code: 'unauthorized' });
    await writeFile(file, '{"auths": {"x": {"auth": "c2VjcmV0"');
    await assert.rejects(get('x'), (error: Error) => /malformed/.test(error.message) && !/c2Vj/.test(error.message));
    assert.equal(await new DockerCredentials(join(folder, 'missing.json')).credential('x', signal), undefined);
  } finally {
    process.env['PATH'] = path;
    await rm(folder, { recursive: true });
  }
});
