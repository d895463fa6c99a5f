import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { connect, createServer, type AddressInfo } from 'node:net';
import { test } from 'node:test';
import { sha256, type Digest } from '#shared/digest/digest.ts';
import { issueCapability } from '#shared/distribution/capability.ts';
import type { NodeRecord } from '#shared/distribution/messages.ts';
import { frameHeader } from '#shared/distribution/span-frames.ts';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { createMetrics } from '#shared/telemetry/metrics.ts';
import { PackedSpans } from './packed-spans.ts';
import { PeerClient } from './peer-client.ts';
import { PeerMetrics } from './peer-metrics.ts';
import { PeerServer } from './peer-server.ts';
import type { HeldLayer, SpanHolder } from './span-holder.ts';

const { privateKey, publicKey } = generateKeyPairSync('ed25519');
const layer = sha256(Buffer.from('ours'));
const other = sha256(Buffer.from('not shown'));
const payload = Buffer.from('the payload');
const record: NodeRecord = { node: 'n1', host: '127.0.0.1', port: 1, zone: '', tls: false };
const capability = issueCapability({ layer, record, expiresMs: Date.now() + 3_600_000 }, privateKey);
const signal = new AbortController().signal;

const held = (digest: Digest): HeldLayer => ({ layer: digest, spanCount: 1, residency: Buffer.of(1) });
const holder: SpanHolder = {
  layers: () => [held(layer), held(other)],
  get: held,
  has: (_, span) => span === 0,
  readPayload: () => Promise.resolve(Uint8Array.from(payload)),
  hurry: () => Promise.resolve(),
  onResident: () => () => {},
  onRemoved: () => () => {},
};

async function startServer(): Promise<PeerServer> {
  return await PeerServer.listen({
    host: '127.0.0.1',
    port: 0,
    holder,
    packed: new PackedSpans(),
    packs: false,
    publicKey: () => publicKey,
    arriving: () => false,
    demanded: () => {},
    followed: () => {},
    bytesPerS: 0,
    tls: undefined,
    metrics: new PeerMetrics(createMetrics()),
    logger: silentLogger,
  });
}

/** All that the server says to these bytes until it hangs up. */
async function answerTo(port: number, bytes: string | Buffer): Promise<string> {
  return await new Promise<string>((resolve) => {
    let text = '';
    // Not ended: a server need not answer one that has hung up already.
    const socket = connect(port, '127.0.0.1', () => socket.write(bytes));
    socket.on('data', (part: Buffer) => {
      text += part.toString('latin1');
    });
    socket.on('error', () => {});
    socket.on('close', () => resolve(text));
  });
}

test('whoever asks a node by tricks of paths, headers and HTTP gets nothing, and the next who may is served', async () => {
  await using server = await startServer();
  const get = (path: string, authorization = `Kindling ${capability}`, method = 'GET') =>
    `${method} ${path} HTTP/1.1\r\nHost: a\r\nAuthorization: ${authorization}\r\nConnection: close\r\n\r\n`;
  const spans = `/v1/layers/${layer}/spans`;
  const wrong: readonly (readonly [string, RegExp])[] = [
    [get(`${spans}/0`, 'Kindling'), / 401 /],
    [get(`${spans}/0`, `Kindling ${capability}x`), / 401 /],
    [get(`${spans}/0`, `Kindling ${capability.replace('.', '..')}`), / 401 /],
    [get(`${spans}/0`, `Kindling .${'A'.repeat(10_000)}`), / 401 /],
    [get(`/v1/layers/${other}/spans/0`), / 401 /],
    [get(`/v1/layers/${other}/residency`), / 401 /],
    [get(`/v1/layers/${layer}/../${other}/spans/0`), / 404 /],
    [get(`/v1/layers/${layer}%2f..%2f${other}/spans/0`), / 404 /],
    [get(`http://a/v1/layers/${layer}/spans/0`), / 404 /],
    [get(`${spans}/0?x`), / 404 /],
    [get(`${spans}/0`, undefined, 'POST'), / 404 /],
    [get(`${spans}/0-9999999`), / 400 /],
    [get(`${spans}/${'0,'.repeat(5000)}0`), / 400 /],
    [get(`${spans}/5-4`), / 400 /],
    [`GET ${spans}/0 HTTP/1.1\r\nA: ${'b'.repeat(40_000)}\r\n\r\n`, / 431 /],
    ['\0\0\0 rubbish\r\n\r\n', / 400 /],
    [`GET ${spans}/0 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n`, / 400 /],
  ];
  for (const [request, answer] of wrong) {
    const said = await answerTo(server.port, request);
    assert.match(said, answer, request.slice(0, 120));
    assert.doesNotMatch(said, /the payload/);
  }
  assert.match(await answerTo(server.port, get(`${spans}/0`)), /the payload/);
});

test('whatever a peer answers, what is taken is what was asked for, and the rest ends as an error within bounds', async () => {
  let answer: readonly (string | Buffer)[] = [];
  let sent = 0;
  const server = createServer((socket) => {
    socket.on('error', () => {});
    socket.once('data', () => {
      for (const part of answer) socket.write(part);
      const last = answer.at(-1) ?? '';
      const more = (): void => {
        if (socket.destroyed) return;
        sent += last.length;
        socket.write(last, () => setImmediate(more));
      };
      more();
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const client = new PeerClient(undefined);
  const peer = { ...record, port: (server.address() as AddressInfo).port };
  const head = 'HTTP/1.1 200 OK\r\nContent-Type: a\r\n\r\n';
  const right = Buffer.concat([frameHeader(0, payload.length), payload]);
  const asked = {
    layer,
    capability,
    packed: true,
    demand: false,
    spans: [0],
    expected: () => payload.length,
    begun: () => {},
  };
  const answers: Readonly<Record<string, readonly (string | Buffer)[]>> = {
    'no HTTP': ['SSH-2.0-OpenSSH\r\n'],
    'headers without end': ['HTTP/1.1 200 OK\r\n', `A: ${'b'.repeat(1000)}\r\n`],
    'another status, with a body without end': ['HTTP/1.1 404 Not Found\r\n\r\n', 'rubbish'.repeat(1000)],
    'a span that was not asked for': [head, frameHeader(7, 4), 'four'],
    'a span that is larger': [head, frameHeader(0, 0x7fffffff), Buffer.alloc(60_000)],
    'a span that is packed to nothing less': [head, frameHeader(0, payload.length, true), Buffer.alloc(60_000)],
    'the right span, again and again': [head, right],
    'packed HTTP': ['HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n', Buffer.from('1f8b0800', 'hex')],
  };
  try {
    for (const [name, parts] of Object.entries(answers)) {
      answer = parts;
      sent = 0;
      const taken: string[] = [];
      const ends = client.spans(
        peer,
        asked,
        (frame) => taken.push(frame.form === 'absent' ? '' : frame.bytes.toString()),
        signal,
      );
      await assert.rejects(ends, { name: 'PeerError' }, name);
      // At most the first, where it came in a piece of its own.
      assert.deepEqual(taken, name.startsWith('the right') && taken.length > 0 ? ['the payload'] : [], name);
    }
    answer = [head, Buffer.concat([Buffer.from('00000001', 'hex'), Buffer.of(1), Buffer.from('00000009', 'hex')])];
    const follows = client.residency(peer, { layer, capability, spanCount: 1 }, () => {}, signal);
    await assert.rejects(follows, { name: 'PeerError', code: 'malformed' });
    assert.ok(sent < 100 * 1024 * 1024);
  } finally {
    await client.close();
    await new Promise<void>((resolve) => void server.close(() => resolve()));
  }
});
