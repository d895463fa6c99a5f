import assert from 'node:assert/strict';
import { randomBytes, randomUUID } from 'node:crypto';
import { after, before, test } from 'node:test';
import { RejectedEvent, type Bus, type BusErrorCode, type ConsumerOptions, type Delivery } from './bus.ts';

export interface BusUnderTest extends AsyncDisposable {
  /** Two buses of two processes, or the same one twice where there is only one process. */
  readonly first: Bus;
  readonly second: Bus;
}

/** Space for objects that a bus under test is to be given. */
export const OBJECT_BYTES = 8 * 1024 * 1024;

/** Long enough for a machine that is busy with other things; nothing waits for it to pass. */
const PATIENCE_MS = 60_000;
const text = (bytes: Uint8Array) => Buffer.from(bytes).toString();

/** What every implementation of the bus keeps to. Each test uses names of its own. */
export function busConformance(kind: string, open: () => Promise<BusUnderTest>): void {
  let under: BusUnderTest;
  let bus: Bus;
  let other: Bus;
  const signal = new AbortController().signal;
  before(async () => {
    under = await open();
    bus = under.first;
    other = under.second;
  });
  after(async () => await under[Symbol.asyncDispose]());

  const fresh = (): { type: string; subject: string; name: string } => {
    const type = `t${randomUUID().slice(0, 8)}`;
    return { type, subject: `kindling.events.${type}`, name: `c-${type}` };
  };
  const options = (name: string, subject: string, more: Partial<ConsumerOptions> = {}): ConsumerOptions => ({
    name,
    subject,
    concurrency: 1,
    maxAttempts: 3,
    inactiveMs: 60_000,
    ackWaitMs: 30_000,
    retryMs: 10,
    start: 'all',
    ...more,
  });
  const publish = (subject: string, payload: string, id: string = randomUUID()) =>
    bus.events.publish({ subject, id, payload: Buffer.from(payload) }, signal);

  test(`${kind}: an event published before anyone consumes is delivered`, async () => {
    const { subject, name } = fresh();
    assert.deepEqual(await publish(subject, 'one'), { duplicate: false });
    const seen = new Inbox<Delivery>();
    await using _consumer = other.events.consume(options(name, subject), async (delivery) => seen.put(delivery));
    const delivery = await seen.take();
    assert.equal(text(delivery.payload), 'one');
    assert.equal(delivery.subject, subject);
    assert.equal(delivery.attempt, 1);
  });

  test(`${kind}: an id that was published already is said to be a duplicate and not delivered again`, async () => {
    const { subject, name } = fresh();
    const id = randomUUID();
    assert.deepEqual(await publish(subject, 'once', id), { duplicate: false });
    assert.deepEqual(await publish(subject, 'twice', id), { duplicate: true });
    await publish(subject, 'last');
    const seen = new Inbox<Delivery>();
    await using _consumer = bus.events.consume(options(name, subject), async (delivery) => seen.put(delivery));
    assert.equal(text((await seen.take()).payload), 'once');
    assert.equal(text((await seen.take()).payload), 'last');
  });

  test(`${kind}: consumers of one name share the events, those of another name get all`, async () => {
    const { subject, name } = fresh();
    const shared = new Inbox<string>();
    const alone = new Inbox<string>();
    await using _a = bus.events.consume(options(name, subject), async (d) => shared.put(text(d.payload)));
    await using _b = other.events.consume(options(name, subject), async (d) => shared.put(text(d.payload)));
    await using _c = other.events.consume(options(`${name}-2`, subject), async (d) => alone.put(text(d.payload)));
    const sent = Array.from({ length: 12 }, (_, i) => `event-${i}`);
    for (const payload of sent) await publish(subject, payload);
    const got = [];
    for (const _ of sent) got.push(await shared.take());
    assert.deepEqual(got.sort(), sent.toSorted());
    for (const payload of sent) assert.equal(await alone.take(), payload);
    assert.equal(shared.size, 0);
  });

  test(`${kind}: a failed attempt is repeated, and after the last one the event is a dead letter`, async () => {
    const { subject, name } = fresh();
    const attempts = new Inbox<number>();
    await using _consumer = bus.events.consume(options(name, subject), async (delivery) => {
      if (text(delivery.payload) === 'good') return attempts.put(0);
      attempts.put(delivery.attempt);
      throw new Error(`no luck\nat ${delivery.attempt}`);
    });
    await publish(subject, 'bad');
    assert.deepEqual([await attempts.take(), await attempts.take(), await attempts.take()], [1, 2, 3]);
    const letter = await eventually(async () =>
      (await other.events.deadLetters(50, signal)).find((l) => l.consumer === name),
    );
    assert.equal(letter.reason, 'no luck at 3');
    assert.equal(letter.subject, subject);
    assert.equal(letter.attempts, 3);
    assert.equal(text(letter.payload), 'bad');
    assert.ok(Math.abs(Date.now() - letter.atMs) < 600_000);
    await publish(subject, 'good');
    assert.equal(await attempts.take(), 0, 'the queue goes on behind it');
  });

  test(`${kind}: an event that is rejected is a dead letter after one attempt`, async () => {
    const { subject, name } = fresh();
    let attempts = 0;
    await using _consumer = bus.events.consume(options(name, subject), async () => {
      attempts += 1;
      throw new RejectedEvent('not ours');
    });
    await publish(subject, 'x');
    const letter = await eventually(async () =>
      (await bus.events.deadLetters(50, signal)).find((l) => l.consumer === name),
    );
    assert.equal(letter.reason, 'not ours');
    assert.equal(attempts, 1);
  });

  test(`${kind}: a dead letter can be put back, which makes it an event again, or dropped`, async () => {
    const { subject, name } = fresh();
    const seen = new Inbox<Delivery>();
    let isMended = false;
    await using _consumer = bus.events.consume(options(name, subject), async (delivery) => {
      if (!isMended) throw new RejectedEvent('not yet');
      seen.put(delivery);
    });
    const letters = async () => (await other.events.deadLetters(50, signal)).filter((l) => l.consumer === name);
    await publish(subject, 'one');
    await publish(subject, 'two');
    const both = await eventually(async () => {
      const found = await letters();
      return found.length === 2 ? found : undefined;
    });
    const [one, two] = both.toSorted((a, b) => (text(a.payload) < text(b.payload) ? -1 : 1));
    assert.ok(one && two);
    isMended = true;
    assert.equal(await other.events.dropDead(two.id, signal), true);
    assert.equal(await other.events.retryDead(one.id, signal), true);
    const delivery = await seen.take();
    assert.deepEqual([text(delivery.payload), delivery.subject, delivery.attempt], ['one', subject, 1]);
    assert.deepEqual(await letters(), []);
    for (const id of [one.id, two.id, '999999999', 'nonsense']) {
      assert.equal(await bus.events.retryDead(id, signal), false);
      assert.equal(await bus.events.dropDead(id, signal), false);
    }
    assert.equal(seen.size, 0);
  });

  test(`${kind}: a name remembers its place while nobody consumes`, async () => {
    const { subject, name } = fresh();
    const seen = new Inbox<string>();
    {
      await using _consumer = bus.events.consume(options(name, subject), async (d) => seen.put(text(d.payload)));
      await publish(subject, 'first');
      assert.equal(await seen.take(), 'first');
    }
    await publish(subject, 'while away');
    await using _again = other.events.consume(options(name, subject), async (d) => seen.put(text(d.payload)));
    assert.equal(await seen.take(), 'while away');
  });

  test(`${kind}: what a closed consumer had not finished is delivered to the next`, async () => {
    const { subject, name } = fresh();
    await publish(subject, 'long');
    const begun = new Inbox<number>();
    {
      await using _consumer = bus.events.consume(options(name, subject), async (delivery) => {
        begun.put(delivery.attempt);
        await new Promise((_, reject) => {
          delivery.signal.addEventListener('abort', () => reject(new Error('stopped')), { once: true });
        });
      });
      assert.equal(await begun.take(), 1);
    }
    const seen = new Inbox<Delivery>();
    await using _again = other.events.consume(options(name, subject), async (delivery) => seen.put(delivery));
    const delivery = await seen.take();
    assert.equal(text(delivery.payload), 'long');
    assert.equal(delivery.attempt, 2);
  });

  test(`${kind}: a name that starts with new events does not get older ones`, async () => {
    const { subject, name } = fresh();
    await publish(subject, 'old');
    const seen = new Inbox<string>();
    await using _consumer = bus.events.consume(options(name, subject, { start: 'new' }), async (d) =>
      seen.put(text(d.payload)),
    );
    // The consumer begins some time after the call: publish until it is there.
    const got = await eventually(async () => {
      await publish(subject, 'new');
      return seen.size > 0 ? await seen.take() : undefined;
    });
    assert.equal(got, 'new');
  });

  test(`${kind}: patterns select events by parts of their subject`, async () => {
    const { subject, name } = fresh();
    const seen = new Inbox<string>();
    await using _consumer = bus.events.consume(options(name, `${subject}.*.done`), async (d) => seen.put(d.subject));
    await publish(`${subject}.a.begun`, '');
    await publish(`${subject}.a.done`, '');
    await publish(`${subject}.a.b.done`, '');
    await publish(`${subject}.c.done`, '');
    assert.equal(await seen.take(), `${subject}.a.done`);
    assert.equal(await seen.take(), `${subject}.c.done`);
  });

  test(`${kind}: as many events are handled at a time as asked, not more`, async () => {
    const { subject, name } = fresh();
    for (let i = 0; i < 6; i++) await publish(subject, String(i));
    const gate = Promise.withResolvers<void>();
    const begun = new Inbox<string>();
    let running = 0;
    let most = 0;
    await using _consumer = bus.events.consume(options(name, subject, { concurrency: 3 }), async (delivery) => {
      running += 1;
      most = Math.max(most, running);
      begun.put(text(delivery.payload));
      await gate.promise;
      running -= 1;
    });
    for (let i = 0; i < 3; i++) await begun.take();
    gate.resolve();
    for (let i = 0; i < 3; i++) await begun.take();
    assert.equal(most, 3);
  });

  test(`${kind}: a request is answered by one member of the queue`, async () => {
    const { type } = fresh();
    let answered = 0;
    const reply = (who: string) => async (payload: Uint8Array, subject: string) => {
      answered += 1;
      return Buffer.from(`${who} ${subject} ${text(payload)}`);
    };
    await using _a = bus.messages.respond(`kindling.${type}.*`, 'q', reply('a'));
    await using _b = other.messages.respond(`kindling.${type}.*`, 'q', reply('b'));
    const answer = await eventually(async () =>
      bus.messages.request(`kindling.${type}.x`, Buffer.from('hello'), PATIENCE_MS, signal).catch(() => undefined),
    );
    assert.match(text(answer), new RegExp(`^[ab] kindling.${type}.x hello$`));
    assert.equal(answered, 1);
  });

  test(`${kind}: a request says who failed: nobody there, the other side, time, the caller`, async () => {
    const { type } = fresh();
    const ask = (subject: string, ms: number, by = signal) => bus.messages.request(subject, Buffer.from(''), ms, by);
    await rejectsWith('no-responder', ask(`kindling.${type}`, PATIENCE_MS));
    await using _a = other.messages.respond(`kindling.${type}`, 'q', async () => {
      throw new Error('cannot do that');
    });
    await using _b = other.messages.respond(
      `kindling.${type}.slow`,
      'q',
      () => new Promise<Uint8Array>((resolve) => setTimeout(() => resolve(Buffer.from('late')), 600)),
    );
    await eventually(async () => {
      const error = await ask(`kindling.${type}`, PATIENCE_MS).catch(
        (e: unknown) => e as { code: string; message: string },
      );
      if ('code' in error && error.code === 'no-responder') return undefined;
      assert.ok('code' in error && error.code === 'remote', String(error));
      return assert.match(error.message, /cannot do that/) ?? true;
    });
    await rejectsWith('timeout', ask(`kindling.${type}.slow`, 50));
    const mine = new AbortController();
    const cancelled = ask(`kindling.${type}.slow`, PATIENCE_MS, mine.signal);
    mine.abort();
    await rejectsWith('cancelled', cancelled);
  });

  test(`${kind}: a message reaches every subscriber, and one of each queue`, async () => {
    const { type } = fresh();
    const all = new Inbox<string>();
    const queued = new Inbox<string>();
    await using _a = bus.messages.subscribe(`kindling.${type}.>`, undefined, (payload) => all.put(`a${text(payload)}`));
    await using _b = other.messages.subscribe(`kindling.${type}.>`, undefined, (payload) =>
      all.put(`b${text(payload)}`),
    );
    await using _c = bus.messages.subscribe(`kindling.${type}.>`, 'q', (payload) => queued.put(text(payload)));
    await using _d = other.messages.subscribe(`kindling.${type}.>`, 'q', (payload) => queued.put(text(payload)));
    const heard = new Set<string>();
    await eventually(async () => {
      bus.messages.send(`kindling.${type}.ready`, Buffer.from('?'));
      await new Promise((resolve) => setTimeout(resolve, 20));
      while (all.size > 0) heard.add(await all.take());
      return heard.size === 2 ? true : undefined;
    });
    while (queued.size > 0) await queued.take();
    assert.equal(bus.messages.send(`kindling.${type}.go`, Buffer.from('!')), true);
    const got: string[] = [];
    while (!got.includes('a!') || !got.includes('b!')) got.push(await all.take());
    assert.equal(await eventually(async () => (queued.size > 0 ? await queued.take() : undefined)), '!');
    assert.equal(queued.size, 0);
  });

  test(`${kind}: a message that its subscriber cannot take is dropped, and those that follow arrive`, async () => {
    const { type } = fresh();
    const inbox = new Inbox<string>();
    let refused = 0;
    await using _a = other.messages.subscribe(`kindling.${type}`, undefined, (payload) => {
      if (payload.length === 0) {
        refused++;
        throw new Error('cannot take that');
      }
      inbox.put(text(payload));
    });
    await eventually(async () => {
      bus.messages.send(`kindling.${type}`, new Uint8Array());
      await new Promise((resolve) => setTimeout(resolve, 20));
      return refused > 0 ? true : undefined;
    });
    bus.messages.send(`kindling.${type}`, Buffer.from('the next'));
    assert.equal(await inbox.take(), 'the next');
  });

  test(`${kind}: an object is the same wherever it is read, and stays as it was first written`, async () => {
    const name = `o.${randomUUID()}`;
    assert.equal(await bus.objects.get(name, signal), undefined);
    assert.equal(await bus.objects.has(name, signal), false);
    const bytes = randomBytes(700_000);
    await bus.objects.put(name, bytes, signal);
    await other.objects.put(name, Buffer.from('other'), signal);
    assert.equal(await other.objects.has(name, signal), true);
    assert.deepEqual(Buffer.from((await other.objects.get(name, signal)) ?? []), bytes);
    await other.objects.remove(name, signal);
    await other.objects.remove(name, signal);
    assert.equal(await bus.objects.get(name, signal), undefined);
    await bus.objects.put(name, Buffer.from('again'), signal);
    assert.equal(text((await other.objects.get(name, signal)) ?? new Uint8Array()), 'again');
  });

  test(`${kind}: when space is short the objects that were put first make room, and one that can never fit is refused`, async () => {
    const names = Array.from({ length: 20 }, (_, i) => `full.${String(i).padStart(2, '0')}.${randomUUID()}`);
    const there = async () => await Promise.all(names.map((name) => other.objects.has(name, signal)));
    for (const [i, name] of names.entries()) {
      await bus.objects.put(name, randomBytes(600_000), signal);
      assert.equal((await there())[i], true);
    }
    const present = await there();
    const kept = present.filter(Boolean).length;
    assert.ok(kept >= 6 && kept * 600_000 <= OBJECT_BYTES, `${kept} are there`);
    assert.ok(present.slice(-kept).every(Boolean), 'those that were put last');
    assert.equal((await other.objects.get(names.at(-kept) ?? '', signal))?.length, 600_000);
    await bus.objects.put(names[0] ?? '', Buffer.from('anew'), signal);
    assert.equal(text((await other.objects.get(names[0] ?? '', signal)) ?? new Uint8Array()), 'anew');
    await rejectsWith('too-large', bus.objects.put(`huge.${randomUUID()}`, new Uint8Array(OBJECT_BYTES), signal));
  });

  test(`${kind}: a claim is held by one at a time and free once it is given back`, async () => {
    const name = `claim-${randomUUID()}`;
    const mine = await bus.claims.claim(name, signal);
    assert.ok(mine);
    assert.equal(await other.claims.claim(name, signal), undefined);
    assert.equal(mine.lost.aborted, false);
    await mine[Symbol.asyncDispose]();
    const theirs = await other.claims.claim(name, signal);
    assert.ok(theirs);
    await mine[Symbol.asyncDispose]();
    assert.equal(
      await bus.claims.claim(name, signal),
      undefined,
      'giving back twice does not take it from the next holder',
    );
    await theirs[Symbol.asyncDispose]();
  });

  test(`${kind}: of many that ask for a claim at the same time one gets it, also when it was held before`, async () => {
    const name = `claim-${randomUUID()}`;
    for (let round = 0; round < 3; round++) {
      const asked = Array.from({ length: 12 }, (_, i) => (i % 2 === 0 ? bus : other).claims.claim(name, signal));
      const given = (await Promise.all(asked)).filter((claim) => claim !== undefined);
      assert.equal(given.length, 1);
      await given[0]?.[Symbol.asyncDispose]();
    }
  });

  test(`${kind}: names and subjects that could mean something else are refused`, async () => {
    await rejectsWith('invalid', publish('kindling.events.*', ''));
    await rejectsWith('invalid', publish('kindling events', ''));
    await rejectsWith('too-large', publish('kindling.events.x', 'x'.repeat(800_000)));
    await rejectsWith('invalid', bus.objects.put('../escape', new Uint8Array(), signal));
    await rejectsWith('invalid', bus.claims.claim('a.b', signal));
    assert.throws(() => bus.messages.send('a b', new Uint8Array()), { code: 'invalid' });
    assert.throws(() => bus.messages.subscribe('a.>.b', undefined, () => {}), { code: 'invalid' });
    assert.throws(() => bus.events.consume(options('a b', 'a'), async () => {}), { code: 'invalid' });
  });

  test(`${kind}: whoever asks to be told of the connection is told of the one there is`, async () => {
    const told = new Inbox<true>();
    using _watch = bus.onConnected(() => told.put(true));
    assert.equal(await told.take(), true);
    assert.equal(bus.connected(), true);
  });
}

export async function rejectsWith(code: BusErrorCode, promise: Promise<unknown>): Promise<void> {
  await assert.rejects(promise, (error) => {
    assert.equal((error as { code?: unknown }).code, code, String(error));
    return true;
  });
}

/** Asks until there is an answer. */
export async function eventually<T>(ask: () => Promise<T | undefined>): Promise<T> {
  const until = Date.now() + PATIENCE_MS;
  for (;;) {
    const answer = await ask();
    if (answer !== undefined) return answer;
    if (Date.now() > until) throw new Error('It did not happen');
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** What came, in order; `take` waits. */
export class Inbox<T> {
  readonly #items: T[] = [];
  readonly #takers: ((item: T) => void)[] = [];

  get size(): number {
    return this.#items.length;
  }

  put(item: T): void {
    const taker = this.#takers.shift();
    if (taker) taker(item);
    else this.#items.push(item);
  }

  async take(): Promise<T> {
    const item = this.#items.shift();
    if (item !== undefined) return item;
    let timer: NodeJS.Timeout | undefined;
    try {
      return await new Promise<T>((resolve, reject) => {
        timer = setTimeout(() => reject(new Error('Nothing came')), PATIENCE_MS);
        this.#takers.push(resolve);
      });
    } finally {
      clearTimeout(timer);
    }
  }
}
