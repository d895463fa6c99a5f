import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { connect } from 'nats';
import { silentLogger } from '#shared/telemetry/logger.ts';
import { busConformance, eventually, Inbox, OBJECT_BYTES, rejectsWith } from './bus-conformance.ts';
import { NatsBus } from './nats-bus.ts';
import type { NatsOptions } from './nats-link.ts';
import { OBJECT_BUCKET } from './nats-object-room.ts';
import { NatsProcess } from './nats-process.ts';

const signal = new AbortController().signal;
const busOf = (url: string, more: Partial<NatsOptions> = {}) =>
  new NatsBus({ url, clientName: 'test', logger: silentLogger, ...more });

describe('NATS', { skip: NatsProcess.missing() }, () => {
  busConformance('NATS', async () => {
    const server = await NatsProcess.start();
    const first = busOf(server.url, { objectBytes: OBJECT_BYTES });
    const second = busOf(server.url, { objectBytes: OBJECT_BYTES });
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

  test('an object with more in it than it claims is not read', async () => {
    await using server = await NatsProcess.start();
    await using bus = busOf(server.url);
    await eventually(() => Promise.resolve(bus.connected()));
    await bus.objects.put('o', Buffer.alloc(1000, 1), signal);
    const raw = await connect({ servers: server.url });
    try {
      const store = await raw.jetstream().views.os(OBJECT_BUCKET);
      const nuid = (await store.info('o'))?.nuid ?? '';
      for (let i = 0; i < 5; i++) await raw.jetstream().publish(`$O.${OBJECT_BUCKET}.C.${nuid}`, Buffer.alloc(1000, i));
      await rejectsWith('too-large', bus.objects.get('o', signal));
    } finally {
      await raw.close();
    }
  });

  test('an object whose bytes are not those that were stored is not read, and one that lost its parts is no end', async () => {
    await using server = await NatsProcess.start();
    await using bus = busOf(server.url);
    const stored = Buffer.alloc(300_000, 1);
    for (const name of ['empty', 'changed', 'lost']) {
      await bus.objects.put(name, name === 'empty' ? new Uint8Array() : stored, signal);
    }
    assert.equal((await bus.objects.get('empty', signal))?.length, 0);
    assert.deepEqual(Buffer.from((await bus.objects.get('changed', signal)) ?? []), stored);
    const raw = await connect({ servers: server.url });
    try {
      const jsm = await raw.jetstreamManager();
      const store = await raw.jetstream().views.os(OBJECT_BUCKET);
      const clear = async (name: string) => {
        const filter = `$O.${OBJECT_BUCKET}.C.${(await store.info(name))?.nuid ?? ''}`;
        await jsm.streams.purge(`OBJ_${OBJECT_BUCKET}`, { filter });
        return filter;
      };
      const parts = await clear('changed');
      stored[200_000] = 2;
      for (let at = 0; at < stored.length; at += 100_000)
        await raw.jetstream().publish(parts, stored.subarray(at, at + 100_000));
      await rejectsWith('unavailable', bus.objects.get('changed', signal));
      await clear('lost');
      const reading = new AbortController();
      const lost = bus.objects.get('lost', reading.signal);
      reading.abort();
      await rejectsWith('cancelled', lost);
    } finally {
      await raw.close();
    }
  });

  test('a bus closes at once while its server is away', async () => {
    await using server = await NatsProcess.start();
    const bus = busOf(server.url);
    await eventually(() => Promise.resolve(bus.connected()));
    await server[Symbol.asyncDispose]();
    await eventually(() => Promise.resolve(!bus.connected()));
    await bus[Symbol.asyncDispose]();
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

  test('parts of an object whose writer was killed are removed by the next that writes, whole ones stay', async () => {
    await using server = await NatsProcess.start();
    {
      await using before = busOf(server.url);
      await before.objects.put('whole', Buffer.from('whole'), signal);
    }
    const raw = await connect({ servers: server.url });
    const parts = async () => {
      const jsm = await raw.jetstreamManager();
      const { state } = await jsm.streams.info('OBJ_KINDLING_OBJECTS', { subjects_filter: '$O.KINDLING_OBJECTS.C.>' });
      return Object.keys(state.subjects ?? {});
    };
    try {
      const orphan = '$O.KINDLING_OBJECTS.C.HALF';
      await raw.jetstream().publish(orphan, new Uint8Array(100_000));
      // Put just now: its writer may be at work.
      await using patient = busOf(server.url, { orphanMs: 600_000 });
      await patient.objects.put('another', Buffer.from('x'), signal);
      assert.ok((await parts()).includes(orphan));
      await using bus = busOf(server.url, { orphanMs: -600_000 });
      await bus.objects.put('third', Buffer.from('x'), signal);
      assert.equal((await parts()).includes(orphan), false);
      for (const name of ['whole', 'another', 'third']) assert.ok(await bus.objects.get(name, signal), name);
    } finally {
      await raw.close();
    }
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

  test('a claim is kept when the answer to a renewal was lost, and lost when somebody else has it', async () => {
    await using server = await NatsProcess.start();
    await using bus = busOf(server.url, { claimTtlMs: 1_000 });
    await using other = busOf(server.url, { claimTtlMs: 1_000 });
    const held = await bus.claims.claim('x', signal);
    assert.ok(held);
    const raw = await connect({ servers: server.url });
    try {
      const kv = await raw.jetstream().views.kv('KINDLING_CLAIMS');
      const { value } = (await kv.get('x')) ?? {};
      assert.ok(value);
      // As a renewal of which the holder hears nothing.
      const unheard = await kv.put('x', value);
      const renewed = await eventually(async () => {
        const present = await kv.get('x');
        return present !== null && present.revision > unheard ? present : undefined;
      });
      assert.deepEqual(renewed.value, value);
      assert.equal(held.lost.aborted, false);
      await held[Symbol.asyncDispose]();
      const theirs = await other.claims.claim('x', signal);
      assert.ok(theirs);
      await eventually(async () => {
        await kv.put('x', 'somebody else');
        return theirs.lost.aborted ? true : undefined;
      });
      await theirs[Symbol.asyncDispose]();
      assert.equal((await kv.get('x'))?.string(), 'somebody else');
    } finally {
      await raw.close();
    }
  });

  test('a claim that is given back while it is being renewed is free', async () => {
    await using server = await NatsProcess.start();
    const claimTtlMs = 600;
    await using bus = busOf(server.url, { claimTtlMs });
    const names = Array.from({ length: 100 }, (_, i) => `x-${i}`);
    const held = await Promise.all(names.map((name) => bus.claims.claim(name, signal)));
    // All are renewed at about this time.
    await new Promise((resolve) => setTimeout(resolve, claimTtlMs / 3));
    await Promise.all(held.map(async (claim) => await claim?.[Symbol.asyncDispose]()));
    const again = await Promise.all(names.map((name) => bus.claims.claim(name, signal)));
    assert.equal(again.filter((claim) => claim === undefined).length, 0);
    await Promise.all(again.map(async (claim) => await claim?.[Symbol.asyncDispose]()));
  });
});
