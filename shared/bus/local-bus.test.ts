import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { busConformance, Inbox } from './bus-conformance.ts';
import { LocalBus } from './local-bus.ts';

busConformance('in-process bus', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'kindling-bus-'));
  const bus = new LocalBus(directory);
  return {
    first: bus,
    second: bus,
    async [Symbol.asyncDispose]() {
      await bus[Symbol.asyncDispose]();
      await rm(directory, { recursive: true });
    },
  };
});

test('in-process bus: events, places, attempts and objects survive the process', async () => {
  const signal = new AbortController().signal;
  const directory = await mkdtemp(join(tmpdir(), 'kindling-bus-'));
  try {
    const consumer = {
      name: 'c',
      subject: 'kindling.events.x',
      concurrency: 1,
      maxAttempts: 5,
      inactiveMs: 60_000,
      ackWaitMs: 60_000,
      retryMs: 1,
      start: 'all',
    } as const;
    {
      await using bus = new LocalBus(directory);
      const begun = new Inbox<true>();
      bus.events.consume(consumer, async (delivery) => {
        if (Buffer.from(delivery.payload).toString() === 'done') return;
        begun.put(true);
        await new Promise((_, reject) => delivery.signal.addEventListener('abort', reject, { once: true }));
      });
      await bus.events.publish({ subject: 'kindling.events.x', id: '1', payload: Buffer.from('done') }, signal);
      await bus.events.publish({ subject: 'kindling.events.x', id: '2', payload: Buffer.from('cut short') }, signal);
      await bus.objects.put('o', Buffer.from('object'), signal);
      await begun.take();
    }
    await using bus = new LocalBus(directory);
    const again = await bus.events.publish({ subject: 'kindling.events.x', id: '2', payload: Buffer.from('') }, signal);
    assert.equal(again.duplicate, true);
    const seen = new Inbox<string>();
    bus.events.consume(consumer, async (d) => seen.put(`${d.attempt} ${Buffer.from(d.payload).toString()}`));
    assert.equal(await seen.take(), '2 cut short');
    assert.equal(Buffer.from((await bus.objects.get('o', signal)) ?? []).toString(), 'object');
  } finally {
    await rm(directory, { recursive: true });
  }
});
