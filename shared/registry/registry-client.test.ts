import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite, test } from 'node:test';
import { sha256 } from '#shared/digest/digest.ts';
import type { CredentialSource } from './credentials.ts';
import { FakeRegistry, sendBlob } from './fake-registry.ts';
import { MEDIA_TYPES } from './manifest.ts';
import { parseReference } from './reference.ts';
import { RegistryClient, type RegistryClientOptions } from './registry-client.ts';

const signal = new AbortController().signal;
const blob = randomBytes(300_000);
const digest = sha256(blob);
const manifest = Buffer.from(
  JSON.stringify({
    schemaVersion: 2,
    mediaType: MEDIA_TYPES.ociManifest,
    config: { mediaType: MEDIA_TYPES.ociConfig, digest, size: blob.length },
    layers: [],
  }),
);
const login: CredentialSource = {
  credential: () => Promise.resolve({ kind: 'password', username: 'me', password: 'secret' }),
};
const basic = `Basic ${Buffer.from('me:secret').toString('base64')}`;

function clientFor(options: RegistryClientOptions = {}): RegistryClient & AsyncDisposable {
  const client = new RegistryClient({ firstRetryDelayMs: 1, ...options });
  return Object.assign(client, { [Symbol.asyncDispose]: () => client.close() });
}

suite('authorization', () => {
  test('one token serves all requests for a repository, however many start at once', async () => {
    let tokens = 0;
    await using registry = await FakeRegistry.start((self) => (request, response) => {
      if (request.url.pathname === '/token') {
        assert.equal(request.headers.authorization, basic);
        assert.equal(request.url.searchParams.get('service'), 'svc');
        assert.equal(request.url.searchParams.get('scope'), 'repository:a/b:pull');
        response.end(JSON.stringify({ token: `t${++tokens}`, expires_in: 300 }));
      } else if (request.headers.authorization !== 'Bearer t1') {
        const challenge = `Bearer realm="http://${self.host}/token",service="svc",scope="repository:a/b:pull"`;
        response.writeHead(401, { 'www-authenticate': challenge }).end('{}');
      } else sendBlob(request, response, blob);
    });
    await using client = clientFor({ credentials: login });
    const repository = `${registry.host}/a/b`;
    const reads = Array.from({ length: 20 }, (_, i) =>
      client.readRange(repository, digest, i * 10, i * 10 + 10, signal),
    );
    for (const [i, bytes] of (await Promise.all(reads)).entries()) {
      assert.deepEqual(bytes, blob.subarray(i * 10, i * 10 + 10));
    }
    assert.equal(tokens, 1);
    const before = registry.requests.length;
    await client.readRange(repository, digest, 0, 5, signal);
    assert.equal(registry.requests.length, before + 1, 'a known token goes along at once');
    assert.equal(await client.authorizationOf(repository, signal), 'Bearer t1');
  });

  test('a token that is no longer accepted is renewed, and a short-lived one before it expires', async ({ mock }) => {
    mock.timers.enable({ apis: ['Date'], now: Date.now() });
    let tokens = 0;
    await using registry = await FakeRegistry.start((self) => (request, response) => {
      if (request.url.pathname === '/token') {
        response.end(JSON.stringify({ access_token: `t${++tokens}`, expires_in: tokens === 1 ? 3600 : 100 }));
      } else if (request.headers.authorization !== `Bearer t${Math.max(2, tokens)}`) {
        response.writeHead(401, { 'www-authenticate': `Bearer realm="http://${self.host}/token"` }).end();
      } else sendBlob(request, response, blob);
    });
    await using client = clientFor();
    const repository = `${registry.host}/a/b`;
    await assert.rejects(client.readRange(repository, digest, 0, 5, signal), { code: 'unauthorized', status: 401 });
    await client.readRange(repository, digest, 0, 5, signal);
    mock.timers.tick(79_000);
    await client.readRange(repository, digest, 0, 5, signal);
    assert.equal(tokens, 2);
    mock.timers.tick(2_000);
    await client.readRange(repository, digest, 0, 5, signal);
    assert.equal(tokens, 3);
  });

  test('an identity token is exchanged by POST', async () => {
    await using registry = await FakeRegistry.start((self) => (request, response) => {
      if (request.url.pathname === '/token') {
        const form = new URLSearchParams(request.body.toString());
        assert.equal(request.method, 'POST');
        assert.equal(form.get('refresh_token'), 'refresh');
        assert.equal(form.get('grant_type'), 'refresh_token');
        response.end(JSON.stringify({ access_token: 'good' }));
      } else if (request.headers.authorization !== 'Bearer good') {
        response.writeHead(401, { 'www-authenticate': `Bearer realm="http://${self.host}/token"` }).end();
      } else sendBlob(request, response, blob);
    });
    const credentials: CredentialSource = {
      credential: () => Promise.resolve({ kind: 'identity-token', identityToken: 'refresh' }),
    };
    await using client = clientFor({ credentials });
    assert.equal((await client.readRange(`${registry.host}/a`, digest, 3, 9, signal)).length, 6);
  });

  test('Basic is answered with Basic, and a wrong password is an error that says to log in', async () => {
    let password = 'secret';
    await using registry = await FakeRegistry.start(() => (request, response) => {
      const expected = `Basic ${Buffer.from(`me:${password}`).toString('base64')}`;
      if (request.headers.authorization !== expected) {
        response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end();
      } else sendBlob(request, response, blob);
    });
    await using client = clientFor({ credentials: login });
    await client.readRange(`${registry.host}/a`, digest, 0, 1, signal);
    password = 'other';
    await assert.rejects(client.readRange(`${registry.host}/a`, digest, 0, 1, signal), {
      code: 'unauthorized',
      message: /log in to 127\.0\.0\.1/,
    });
  });

  test('authorization is found out for a repository that has not been asked for anything', async () => {
    await using registry = await FakeRegistry.start(() => (request, response) => {
      if (request.headers.authorization === basic) response.end('{}');
      else response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end();
    });
    await using client = clientFor({ credentials: login });
    assert.equal(await client.authorizationOf(`${registry.host}/a`, signal), basic);
    assert.deepEqual(registry.lines, ['GET /v2/']);
  });

  test("another's authorization is sent in place of our own", async () => {
    await using registry = await FakeRegistry.start(() => (request, response) => {
      response.writeHead(request.headers.authorization === 'Bearer theirs' ? 200 : 403).end();
    });
    await using client = clientFor({ credentials: login });
    const repository = `${registry.host}/a`;
    assert.equal(await client.blobExists(repository, digest, signal, { authorization: 'Bearer theirs' }), true);
    await assert.rejects(client.blobExists(repository, digest, signal, { authorization: '' }), {
      code: 'unauthorized',
    });
  });
});

suite('redirects', () => {
  test('the target is kept, gets no credentials, and is asked for anew when it refuses', async () => {
    let isExpired = false;
    let signature = 0;
    await using storage = await FakeRegistry.start(() => (request, response) => {
      assert.equal(request.headers.authorization, undefined);
      if (isExpired && request.url.searchParams.get('sig') === '1') response.writeHead(403).end();
      else sendBlob(request, response, blob);
    });
    await using registry = await FakeRegistry.start(() => (request, response) => {
      if (request.headers.authorization !== basic) {
        response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end();
      } else response.writeHead(307, { location: `http://${storage.host}/x?sig=${++signature}` }).end();
    });
    await using client = clientFor({ credentials: login });
    const repository = `${registry.host}/a`;
    for (let i = 0; i < 3; i++) {
      assert.deepEqual(await client.readRange(repository, digest, i, i + 9, signal), blob.subarray(i, i + 9));
    }
    assert.deepEqual(registry.lines.length, 2);
    assert.equal(storage.requests.length, 3);
    isExpired = true;
    assert.deepEqual(await client.readRange(repository, digest, 5, 9, signal), blob.subarray(5, 9));
    assert.equal(signature, 2);
  });

  test('a redirect into link-local addresses is refused, and so is a token server there', async () => {
    for (const where of ['http://169.254.169.254/latest/meta-data', 'http://[::ffff:a9fe:a9fe]/latest']) {
      await using registry = await FakeRegistry.start(() => (request, response) => {
        if (request.url.pathname.startsWith('/v2/a/')) response.writeHead(307, { location: where }).end();
        else response.writeHead(401, { 'www-authenticate': `Bearer realm="${where}"` }).end();
      });
      await using client = clientFor({ credentials: login });
      await assert.rejects(client.readRange(`${registry.host}/a`, digest, 0, 1, signal), { code: 'refused' });
      await assert.rejects(client.resolve(parseReference(`${registry.host}/a`), signal), { code: 'refused' });
      await assert.rejects(client.readRange(`${registry.host}/b`, digest, 0, 1, signal), { code: 'refused' });
    }
  });

  test('endless redirects end', async () => {
    await using registry = await FakeRegistry.start(() => (request, response) => {
      response.writeHead(302, { location: request.url.pathname }).end();
    });
    await using client = clientFor();
    await assert.rejects(client.readRange(`${registry.host}/a`, digest, 0, 1, signal), { code: 'bad-answer' });
    await assert.rejects(client.manifest(parseReference(`${registry.host}/a`), signal), { code: 'bad-answer' });
  });
});

suite('reads', () => {
  test('a body without end, in answer to a range, is cut where the range ends', async () => {
    await using registry = await FakeRegistry.start(() => (request, response) => {
      const start = Number(/^bytes=(\d+)-/.exec(request.headers.range ?? '')?.[1]);
      const bytes = request.url.pathname.startsWith('/v2/whole/') ? blob : blob.subarray(start);
      response.writeHead(bytes === blob ? 200 : 206);
      const more = (): void => {
        if (!response.destroyed) response.write(bytes, () => setImmediate(more));
      };
      more();
    });
    await using client = clientFor({ attempts: 1 });
    for (const name of ['whole', 'range']) {
      const read = await client.readRange(`${registry.host}/${name}`, digest, 100, 200_000, signal);
      assert.deepEqual(read, blob.subarray(100, 200_000), name);
    }
  });

  test('answers that break off after each byte are not taken up for ever', async () => {
    await using registry = await FakeRegistry.start(() => (request, response) => {
      const start = Number(/^bytes=(\d+)-/.exec(request.headers.range ?? '')?.[1] ?? 0);
      response.writeHead(206, { 'content-length': 1000 });
      response.write(blob.subarray(start, start + 1), () => setImmediate(() => response.destroy()));
    });
    await using client = clientFor({ attempts: 3 });
    const repository = `${registry.host}/a`;
    await assert.rejects(client.readRange(repository, digest, 0, 1000, signal), { code: 'unreachable' });
    assert.equal(registry.requests.length, 3);
    const drain = async () => {
      for await (const chunk of client.blobRange(repository, digest, 0, 1000, signal)) assert.equal(chunk.length, 1);
    };
    await assert.rejects(drain(), { code: 'unreachable' });
    assert.equal(registry.requests.length, 6);
  });

  test('an answer that stays open behind its last byte keeps nobody waiting', async () => {
    await using registry = await FakeRegistry.start(() => (_, response) => {
      response.writeHead(206).write(blob.subarray(0, 10));
    });
    await using client = clientFor({ attempts: 1 });
    assert.deepEqual(await client.readRange(`${registry.host}/a`, digest, 0, 10, signal), blob.subarray(0, 10));
  });

  test('a connection that breaks in the middle is taken up where it stopped', async () => {
    await using registry = await FakeRegistry.start(() => (request, response) => {
      const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? 'bytes=0-');
      const start = Number(range?.[1]);
      const end = range?.[2] ? Number(range[2]) + 1 : blob.length;
      if (end - start <= 70_000) return sendBlob(request, response, blob);
      response.writeHead(start === 0 && !request.headers.range ? 200 : 206, {
        'content-length': end - start,
        'content-range': `bytes ${start}-${end - 1}/${blob.length}`,
      });
      response.write(blob.subarray(start, start + 50_000), () => response.destroy());
    });
    await using client = clientFor({ attempts: 2 });
    const repository = `${registry.host}/a`;
    assert.deepEqual(await client.readRange(repository, digest, 100, 290_000, signal), blob.subarray(100, 290_000));
    const parts: Buffer[] = [];
    for await (const chunk of client.blobStream(repository, { digest, size: blob.length }, signal)) parts.push(chunk);
    assert.deepEqual(Buffer.concat(parts), blob);
  });

  test('a whole blob in answer to a range is cut', async () => {
    await using registry = await FakeRegistry.start(() => (_, response) => {
      response.writeHead(200, { 'content-length': blob.length }).end(blob);
    });
    await using client = clientFor();
    const repository = `${registry.host}/a`;
    assert.deepEqual(await client.readRange(repository, digest, 1000, 2000, signal), blob.subarray(1000, 2000));
    assert.deepEqual(await client.tail(repository, { digest, size: blob.length }, 77, signal), blob.subarray(-77));
    assert.deepEqual(await client.tail(repository, { digest, size: blob.length }, 2 ** 30, signal), blob);
  });

  test('an answer for another range, and a range past the end, are refused', async () => {
    await using registry = await FakeRegistry.start(() => (request, response) => {
      if (request.url.pathname.startsWith('/v2/lying')) {
        response.writeHead(206, { 'content-range': 'bytes 0-9/100', 'content-length': 10 }).end(Buffer.alloc(10));
      } else sendBlob(request, response, blob);
    });
    await using client = clientFor();
    const lying = client.readRange(`${registry.host}/lying`, digest, 10, 20, signal);
    await assert.rejects(lying, { code: 'bad-answer' });
    const past = client.readRange(`${registry.host}/a`, digest, blob.length, blob.length + 1, signal);
    await assert.rejects(past, { code: 'bad-answer', status: 416 });
    const negative = client.readRange(`${registry.host}/a`, digest, -1, 1, signal);
    await assert.rejects(negative, { code: 'refused' });
  });

  test('what has another digest is refused: blobs, streams and manifests', async () => {
    await using registry = await FakeRegistry.start(() => (request, response) => {
      if (request.url.pathname.includes('/manifests/')) response.end(manifest);
      else sendBlob(request, response, blob);
    });
    await using client = clientFor();
    const repository = `${registry.host}/a`;
    const other = { digest: sha256(Buffer.from('other')), size: blob.length };
    await assert.rejects(client.blob(repository, other, signal), { code: 'digest-mismatch' });
    await assert.rejects(
      async () => {
        for await (const _ of client.blobStream(repository, other, signal));
      },
      { code: 'digest-mismatch' },
    );
    const reference = parseReference(`${repository}@${other.digest}`);
    await assert.rejects(client.manifest(reference, signal), { code: 'digest-mismatch' });
    assert.equal((await client.manifest(parseReference(repository), signal)).descriptor.digest, sha256(manifest));
  });

  test('a manifest without end is not read to its end', async () => {
    await using registry = await FakeRegistry.start(() => (_, response) => {
      const more = (): void => {
        while (!response.destroyed && response.write(Buffer.alloc(65_536, ' ')));
        response.once('drain', more);
      };
      response.writeHead(200, { 'content-type': MEDIA_TYPES.ociManifest });
      more();
    });
    await using client = clientFor();
    await assert.rejects(client.manifest(parseReference(`${registry.host}/a`), signal), { code: 'too-large' });
    const tooLarge = client.blob(`${registry.host}/a`, { digest, size: 11 }, signal, { maxBytes: 10 });
    await assert.rejects(tooLarge, { code: 'too-large' });
  });

  test('an abort ends a read at once, before and in the middle of the answer', async () => {
    const reached = Promise.withResolvers<void>();
    await using registry = await FakeRegistry.start(() => (request, response) => {
      if (request.url.pathname.startsWith('/v2/silent')) return reached.resolve();
      response.writeHead(206, { 'content-length': 100 });
      response.write('x');
    });
    await using client = clientFor();
    const silent = new AbortController();
    const waiting = client.readRange(`${registry.host}/silent`, digest, 0, 100, silent.signal);
    await reached.promise;
    silent.abort();
    await assert.rejects(waiting, { code: 'cancelled' });
    const stalled = new AbortController();
    await assert.rejects(
      async () => {
        for await (const _ of client.blobRange(`${registry.host}/a`, digest, 0, 100, stalled.signal)) stalled.abort();
      },
      { code: 'cancelled' },
    );
  });
});

suite('retries', () => {
  test('trouble passes: 503, 429 with Retry-After, a closed connection', async () => {
    let asked = 0;
    await using registry = await FakeRegistry.start(() => (request, response) => {
      asked++;
      if (asked === 1) response.writeHead(503).end();
      else if (asked === 2) response.writeHead(429, { 'retry-after': '0' }).end();
      else if (asked === 3) response.destroy();
      else sendBlob(request, response, blob);
    });
    await using client = clientFor();
    assert.equal((await client.readRange(`${registry.host}/a`, digest, 0, 10, signal)).length, 10);
    assert.equal(asked, 4);
  });

  test('a long Retry-After is handed to the caller', async () => {
    await using registry = await FakeRegistry.start(() => (_, response) => {
      response.writeHead(429, { 'retry-after': '3600' }).end('{"errors":[{"message":"slow down"}]}');
    });
    await using client = clientFor();
    await assert.rejects(client.manifest(parseReference(`${registry.host}/a`), signal), {
      code: 'rate-limited',
      retryAfterMs: 3_600_000,
      retryable: true,
      message: /slow down/,
    });
    assert.equal(registry.requests.length, 1);
  });

  test('what is not there is asked for once, and the error names host and repository', async () => {
    await using registry = await FakeRegistry.start(() => (_, response) => response.writeHead(404).end());
    await using client = clientFor();
    await assert.rejects(client.manifest(parseReference(`${registry.host}/a/b:v1`), signal), {
      code: 'not-found',
      host: registry.host,
      repository: 'a/b',
      status: 404,
      retryable: false,
    });
    assert.equal(await client.blobExists(`${registry.host}/a/b`, digest, signal), false);
    assert.equal(registry.requests.length, 2);
  });

  test('an upload that breaks is begun anew', async () => {
    let puts = 0;
    await using registry = await FakeRegistry.start(() => (request, response) => {
      if (request.method === 'HEAD') response.writeHead(404).end();
      else if (request.method === 'POST') response.writeHead(202, { location: '/up?state=x' }).end();
      else if (++puts === 1) response.destroy();
      else response.writeHead(201).end();
    });
    await using client = clientFor();
    async function* open(): AsyncGenerator<Uint8Array> {
      yield blob.subarray(0, 1000);
      yield blob.subarray(1000);
    }
    assert.equal(await client.uploadBlob(`${registry.host}/a`, { digest, size: blob.length }, open, signal), true);
    const last = registry.requests.at(-1);
    assert.deepEqual(last?.body, blob);
    assert.equal(last?.url.searchParams.get('digest'), digest);
    assert.equal(last?.url.searchParams.get('state'), 'x');
  });

  test('a source that fails while it is uploaded fails the upload with its own error', async () => {
    await using registry = await FakeRegistry.start(() => (request, response) => {
      if (request.method === 'HEAD') response.writeHead(404).end();
      else response.writeHead(202, { location: '/up' }).end();
    });
    await using client = clientFor({ attempts: 2 });
    async function* open(): AsyncGenerator<Uint8Array> {
      yield blob.subarray(0, 1000);
      throw new Error('disk on fire');
    }
    const upload = client.uploadBlob(`${registry.host}/a`, { digest, size: blob.length }, open, signal);
    await assert.rejects(upload, { name: 'Error', message: 'disk on fire' });
  });
});

suite('hosts', () => {
  test('only allowed hosts are asked', async () => {
    await using client = clientFor({ allowHosts: ['registry.example'] });
    await assert.rejects(client.resolve(parseReference('127.0.0.1:1/a'), signal), { code: 'refused' });
  });

  test('an unreachable host says so', async () => {
    await using client = clientFor({ attempts: 2 });
    await assert.rejects(client.resolve(parseReference('127.0.0.1:1/a'), signal), {
      code: 'unreachable',
      message: /127\.0\.0\.1:1.*ECONNREFUSED/,
    });
  });

  test('mirrors come first, are told the registry, and the registry helps where they do not', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'kindling-mirrors-'));
    try {
      await using mirror = await FakeRegistry.start(() => (request, response) => {
        assert.equal(request.headers['x-mirror'], 'yes');
        if (request.url.pathname.includes('/blobs/')) sendBlob(request, response, blob);
        else response.writeHead(404).end();
      });
      await using registry = await FakeRegistry.start(() => (_, response) => {
        response.writeHead(200, { 'content-type': MEDIA_TYPES.ociManifest }).end(manifest);
      });
      await mkdir(join(folder, registry.host));
      await writeFile(
        join(folder, registry.host, 'hosts.toml'),
        `server = "http://${registry.host}"
        [host."http://127.0.0.1:1"]
          capabilities = ["pull", "resolve"]
        [host."http://${mirror.host}/some/path"]
          capabilities = ["pull", "resolve"]
          [host."http://${mirror.host}/some/path".header]
            x-mirror = "yes"`,
      );
      await using client = clientFor({ mirrorsDir: folder });
      const repository = `${registry.host}/a`;
      await client.readRange(repository, digest, 0, 10, signal);
      assert.deepEqual(mirror.lines, [`GET /some/path/v2/a/blobs/${digest}`]);
      assert.equal(mirror.requests[0]?.url.searchParams.get('ns'), registry.host);
      assert.deepEqual(registry.lines, []);
      assert.equal((await client.manifest(parseReference(repository), signal)).descriptor.digest, sha256(manifest));
      assert.deepEqual(registry.lines, ['GET /v2/a/manifests/latest']);
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});
