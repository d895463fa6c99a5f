import assert from 'node:assert/strict';
import { mkdtemp, rm, stat } from 'node:fs/promises';
import { request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { ControlClient } from '#shared/control/control-client.ts';
import type { AgentStatus, LayerStatus, PullEvent, Trace } from '#shared/control/control-protocol.ts';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { ControlServer, type ControlHandlers } from './control-server.ts';

const folder = await mkdtemp(join(tmpdir(), 'kindling-ctl-'));
after(() => rm(folder, { recursive: true }));
const never = new AbortController().signal;

const status: AgentStatus = {
  version: '1.0.0',
  pid: 1,
  startedAtMs: 2,
  ready: true,
  rssBytes: 3,
  dataDir: '/data',
  snapshotter: 'kindling',
  fuse: { transport: 'device', directory: '/data/fuse', reads: 0, bytes: 0, errors: 0, waiting: 0 },
  layers: { total: 0, mounted: 0, complete: 0, diskBytes: 0, quotaBytes: 0 },
  dependents: [],
  notLazy: [],
};

function handlersWith(own: Partial<ControlHandlers>): ControlHandlers {
  return {
    status: () => Promise.resolve(status),
    layers: (): LayerStatus[] => [],
    trace: (since): Trace => ({ seq: since ?? 7, events: [] }),
    pull: () => {
      throw new Error('not asked for');
    },
    reload: () => {},
    deadLetters: () => Promise.resolve([]),
    settleDeadLetter: () => Promise.resolve(false),
    ...own,
  };
}

async function listen(name: string, own: Partial<ControlHandlers> = {}) {
  const path = join(folder, `${name}.sock`);
  const server = await ControlServer.listen(path, handlersWith(own), silentLogger);
  return { path, client: new ControlClient(path), server };
}

test('answers what the agent says, on a socket that only its owner may use', async () => {
  const { path, client, server } = await listen('a');
  assert.deepEqual(await client.status(never), status);
  assert.deepEqual(await client.layers(never), []);
  assert.equal((await client.trace(undefined, never)).seq, 7);
  assert.equal((await client.trace(3, never)).seq, 3);
  assert.equal((await stat(path)).mode & 0o777, 0o600);
  await server.close();
});

test('a pull is told as it goes, and ends when its client goes away', async () => {
  const layer: PullEvent = { kind: 'layer', layer: 'l', sizeBytes: 1, state: 'lazy', elapsedMs: 1, done: 1, total: 2 };
  const ended = Promise.withResolvers<void>();
  const { client, server } = await listen('b', {
    async *pull(_request, signal) {
      yield layer;
      await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
      ended.resolve();
    },
  });
  const gone = new AbortController();
  const events: PullEvent[] = [];
  await assert.rejects(async () => {
    for await (const event of client.pull({ reference: 'r.example/a' }, gone.signal)) {
      events.push(event);
      gone.abort(new Error('Ctrl-C'));
    }
  });
  assert.deepEqual(events, [layer]);
  await ended.promise;
  await server.close();
});

test('dead letters are listed, put back and dropped', async () => {
  const letter = {
    id: '7',
    atMs: 1,
    consumer: 'c',
    type: 'image.pushed',
    image: 'r.example/a',
    attempts: 2,
    reason: 'x',
  };
  const settled: unknown[] = [];
  const { client, server } = await listen('e', {
    deadLetters: (limit) => Promise.resolve(limit === 5 ? [letter] : []),
    settleDeadLetter: (request) => {
      settled.push(request);
      return Promise.resolve(request.id === '7');
    },
  });
  assert.deepEqual(await client.deadLetters(5, never), [letter]);
  assert.equal(await client.settleDeadLetter({ id: '7', how: 'retry' }, never), true);
  assert.equal(await client.settleDeadLetter({ id: '8', how: 'drop' }, never), false);
  assert.equal(settled.length, 2);
  await assert.rejects(client.deadLetters(0, never), { code: 'refused', message: /from 1 to/ });
  await server.close();
});

test('what fails, is unknown or is nonsense is said, and the server goes on', async () => {
  const { path, client, server } = await listen('c', {
    reload: () => {
      throw new Error('there is no keeper');
    },
  });
  await assert.rejects(client.reload(never), { name: 'ControlError', code: 'refused', message: 'there is no keeper' });
  const post = async (url: string, body: string) =>
    await new Promise<number | undefined>((resolve, reject) => {
      const sent = request({ socketPath: path, path: url, method: 'POST' }, (response) => {
        response.resume();
        resolve(response.statusCode);
      });
      sent.once('error', reject);
      sent.end(body);
    });
  assert.equal(await post('/v1/nothing', ''), 404);
  assert.equal(await post('/v1/pull', '{"reference":'), 400);
  assert.equal(await post('/v1/pull', '{"reference":"a","other":1}'), 400);
  assert.equal(await post('/v1/pull', JSON.stringify({ reference: 'x'.repeat(100_000) })), 400);
  assert.deepEqual(await client.status(never), status);
  await server.close();
});

test('an agent that is not there is named with what to do, and a socket that was left is replaced', async () => {
  await assert.rejects(new ControlClient(join(folder, 'none.sock')).status(never), {
    code: 'unreachable',
    message: /kindling up/,
  });
  const first = await listen('d');
  const second = await listen('d');
  assert.deepEqual(await second.client.status(never), status);
  await first.server.close();
  await second.server.close();
});
