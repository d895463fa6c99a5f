import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { busConformance, Inbox, OBJECT_BYTES } from './bus-conformance.ts';
import { LocalBus } from './local-bus.ts';

busConformance('in-process bus', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'kindling-bus-'));
  const bus = new LocalBus(directory, { objectBytes: OBJECT_BYTES });
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

test('in-process bus: objects in memory are bounded as well; half-written files of a killed process are removed', async () => {
  const signal = new AbortController().signal;
  await using memory = new LocalBus(undefined, { objectBytes: 1000 });
  for (const name of ['a', 'b', 'c']) await memory.objects.put(name, new Uint8Array(400), signal);
  const present = await Promise.all(['a', 'b', 'c'].map((name) => memory.objects.has(name, signal)));
  assert.deepEqual(present, [false, false, true]);
  const directory = await mkdtemp(join(tmpdir(), 'kindling-bus-'));
  try {
    await mkdir(join(directory, 'objects'));
    await writeFile(join(directory, 'objects', '~1-1'), 'half');
    await using bus = new LocalBus(directory);
    await bus.objects.put('whole', Buffer.from('x'), signal);
    assert.deepEqual(await readdir(join(directory, 'objects')), ['whole']);
  } finally {
    await rm(directory, { recursive: true });
  }
});

test('in-process bus: the database of a version that did not date its dead letters is taken over', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'kindling-bus-'));
  try {
    using old = new DatabaseSync(join(directory, 'events.sqlite'));
    old.exec(
      `CREATE TABLE dead (number INTEGER PRIMARY KEY AUTOINCREMENT, consumer TEXT NOT NULL, subject TEXT NOT NULL,
       reason TEXT NOT NULL, attempts INTEGER NOT NULL, payload BLOB NOT NULL)`,
    );
    old.exec("INSERT INTO dead (consumer, subject, reason, attempts, payload) VALUES ('c', 's', 'r', 1, x'00')");
    old.close();
    await using bus = new LocalBus(directory);
    const [letter] = await bus.events.deadLetters(1);
    assert.deepEqual([letter?.id, letter?.atMs, letter?.reason], ['1', 0, 'r']);
  } finally {
    await rm(directory, { recursive: true });
  }
});
