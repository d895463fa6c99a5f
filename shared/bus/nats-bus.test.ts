import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { busConformance, eventually, Inbox, rejectsWith } from './bus-conformance.ts';
import { NatsBus } from './nats-bus.ts';
import { NatsProcess } from './nats-process.ts';

const signal = new AbortController().signal;
const busOf = (url: string, more: { claimTtlMs?: number; waitMs?: number } = {}) =>
  new NatsBus({ url, clientName: 'test', logger: silentLogger, ...more });

describe('NATS', { skip: NatsProcess.missing() }, () => {
  busConformance('NATS', async () => {
    const server = await NatsProcess.start();
    const first = busOf(server.url);
    const second = busOf(server.url);
    return {
      first,
      second,
      async [Symbol.asyncDispose]() {
        await first[Symbol.asyncDispose]();
        await second[Symbol.asyncDispose]();
        await server[Symbol.asyncDispose]();
      },
    };
  });

  test('NATS killed and back: calls fail within a bound, nothing durable is lost, consumers go on by themselves', async () => {
    await using server = await NatsProcess.start();
    await using bus = busOf(server.url);
    const consumer = {
      name: 'c',
      subject: 'kindling.events.x',
      concurrency: 2,
      maxAttempts: 9,
      inactiveMs: 60_000,
      ackWaitMs: 5_000,
      retryMs: 10,
      start: 'all',
    } as const;
    const publish = (id: string) =>
      bus.events.publish({ subject: 'kindling.events.x', id, payload: Buffer.from(id) }, signal);
    const seen = new Inbox<string>();
    let connections = 0;
    using _watch = bus.onConnected(() => (connections += 1));
    await publish('1');
    await using _responder = bus.messages.respond('kindling.ask', 'q', async () => Buffer.from('answer'));
    {
      await using _consumer = bus.events.consume(consumer, async (d) => seen.put(Buffer.from(d.payload).toString()));
      assert.equal(await seen.take(), '1');
      await publish('2');
      assert.equal(await seen.take(), '2');
    }
    await publish('3');
    await bus.objects.put('kept', Buffer.from('kept'), signal);
    await server.kill();
    await eventually(async () => (bus.connected() ? undefined : true));
    await rejectsWith('unavailable', bus.messages.request('kindling.ask', Buffer.from(''), 1_000, signal));
    assert.equal(bus.messages.send('kindling.tell', Buffer.from('')), false);
    await using _consumer = bus.events.consume(consumer, async (d) => seen.put(Buffer.from(d.payload).toString()));
    // A publish waits for the server, within its bound.
    const waiting = publish('4');
    await server.resume();
    await waiting;
    // At least once: a server that was killed may have forgotten that "1" and "2" were acknowledged.
    const got = new Set<string>();
    while (!got.has('3') || !got.has('4')) got.add(await seen.take());
    assert.equal(Buffer.from((await bus.objects.get('kept', signal)) ?? []).toString(), 'kept');
    const answer = await bus.messages.request('kindling.ask', Buffer.from(''), 30_000, signal);
    assert.equal(Buffer.from(answer).toString(), 'answer');
    assert.equal(connections, 2);
  });

  test('a bus whose server is not there yet is made at once, fails in time, and works when the server comes', async () => {
    await using server = await NatsProcess.start();
    await server.kill();
    await using bus = busOf(server.url, { waitMs: 50 });
    const seen = new Inbox<string>();
    await using _listener = bus.messages.subscribe('kindling.x', undefined, (payload) =>
      seen.put(Buffer.from(payload).toString()),
    );
    await rejectsWith('unavailable', bus.objects.has('x', signal));
    await server.resume();
    await eventually(async () => (bus.messages.send('kindling.x', Buffer.from('hello')) ? true : undefined));
    assert.equal(await seen.take(), 'hello');
  });

  test('the claim of a holder that died is free after its time', async () => {
    await using server = await NatsProcess.start();
    await using bus = busOf(server.url, { claimTtlMs: 1_000 });
    const dying = busOf(server.url, { claimTtlMs: 1_000 });
    const held = await dying.claims.claim('x', signal);
    assert.ok(held);
    // Without giving it back, as a killed process would.
    await dying[Symbol.asyncDispose]();
    assert.equal(await bus.claims.claim('x', signal), undefined);
    const mine = await eventually(() => bus.claims.claim('x', signal));
    await mine[Symbol.asyncDispose]();
    await held[Symbol.asyncDispose]();
  });
});
