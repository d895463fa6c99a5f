import assert from 'node:assert/strict';
import { test } from 'node:test';
import { sha256 } from '#shared/digest/digest.ts';
import type { NodeRecord } from '#shared/distribution/messages.ts';
import { SpanSet } from '#shared/distribution/span-set.ts';
import type { ChunkDirectory, LocateWanted } from './chunk-directory.ts';

const LIMITS = { samples: 8, unread: 16 };
const LEASE_MS = 1_000;
const TERMS = { ttlMs: LEASE_MS, ageMs: 4 * LEASE_MS };
let layers = 0;

function record(node: string): NodeRecord {
  return { node, host: '10.0.0.1', port: 7000, zone: 'a', tls: false };
}

function asks(
  node: string,
  spans: readonly number[],
  without: readonly string[],
  slow: readonly string[] = [],
): LocateWanted {
  return { node, spans, without, slow };
}

/** What every directory must do. `open` is called once for each test; layers and nodes are of other names each time. */
export function directoryConformance(name: string, open: () => Promise<ChunkDirectory>): void {
  const it = (what: string, run: (directory: ChunkDirectory, layer: ReturnType<typeof sha256>) => Promise<void>) =>
    test(`${name}: ${what}`, async () => {
      await using directory = await open();
      await run(directory, sha256(Buffer.from(`${process.pid}-${layers++}`)));
    });
  const wants = (...spans: readonly number[]) => SpanSet.of(20, spans).bytes;

  it('epoch and secret stay, and the first secret decides', async (directory) => {
    assert.equal(await directory.epoch(), await directory.epoch());
    const secret = await directory.secret(() => 'one', String);
    assert.equal(await directory.secret(() => 'two', String), secret);
  });

  it('nodes are known until they have been silent', async (directory) => {
    await directory.nodes.put(record('n1'), 1_000);
    await directory.nodes.put(record('n2'), 2_000);
    assert.deepEqual(await directory.nodes.get(['n2', 'nobody']), [record('n2')]);
    assert.deepEqual(await directory.nodes.silent(1_500), ['n1']);
    await directory.nodes.remove('n1', 2_000);
    assert.deepEqual(await directory.nodes.all(10), [record('n2')]);
    await directory.nodes.remove('n2', 2_000);
  });

  it('what nodes say of themselves is kept until they go, and a join does not take it away', async (directory) => {
    const figures = { registryBytes: 1, peerBytes: 2, givenBytes: 3, feeds: [{ node: 'n4', bytes: 2 }] };
    await directory.nodes.put(record('n3'), 1_000, figures);
    await directory.nodes.put(record('n3'), 1_000);
    await directory.nodes.put(record('n4'), 1_000);
    assert.deepEqual([...(await directory.nodes.figures(['n3', 'n4', 'nobody']))], [['n3', figures]]);
    await directory.nodes.remove('n3', 1_000);
    assert.equal((await directory.nodes.figures(['n3'])).size, 0);
    await directory.nodes.remove('n4', 1_000);
  });

  it('reports are kept, each once, as of when it was made last', async (directory) => {
    for (const [reporter, atMs] of [
      ['10.0.0.1', 1_000],
      ['10.0.0.2', 2_000],
      ['10.0.0.1', 3_000],
    ] as const) {
      await directory.reports.add({ suspect: 'bad', reporter }, atMs);
    }
    const since = async (ms: number) => (await directory.reports.since(ms)).map(({ reporter }) => reporter).toSorted();
    assert.deepEqual(await since(1_500), ['10.0.0.1', '10.0.0.2']);
    assert.deepEqual(await since(2_500), ['10.0.0.1']);
  });

  it('what is wanted, not held and not fetched is unread; it is leased once', async (directory, layer) => {
    const { layers: table } = directory;
    await table.change(layer, 'a', { spanCount: 20, have: wants(1), wants: wants(2, 3) }, 0, TERMS);
    const waiting = { load: 1, room: 4 };
    await table.change(layer, 'b', { spanCount: 20, wants: wants(1, 2, 3), waiting }, 0, TERMS);
    const view = await table.look(layer, 0, TERMS, LIMITS);
    assert.deepEqual(view, {
      members: 2,
      outstanding: 0,
      waiting: [{ node: 'b', ...waiting }],
      unread: [2, 3],
      late: [],
    });
    assert.deepEqual(await table.grant(layer, [{ node: 'b', spans: [1, 2] }], 0, TERMS), [{ node: 'b', spans: [2] }]);
    assert.deepEqual(await table.grant(layer, [{ node: 'b', spans: [3] }], 0, TERMS), [], 'b waits no more');
    assert.deepEqual(await table.grant(layer, [{ node: 'a', spans: [2] }], 0, TERMS), [], 'it is leased');
    const after = await table.look(layer, 0, TERMS, LIMITS);
    assert.deepEqual([after.outstanding, after.waiting, after.unread], [1, [], [3]]);
    await table.change(layer, 'b', { spanCount: 20, gained: [2] }, 0, TERMS);
    assert.equal((await table.look(layer, 0, TERMS, LIMITS)).outstanding, 0);
  });

  it('a lease ends when it is given back, when it runs out, and when its holder goes', async (directory, layer) => {
    const { layers: table } = directory;
    const fetching = { spanCount: 20, wants: wants(0, 1, 2), fetching: [0, 1, 2] };
    await table.change(layer, 'a', fetching, 0, TERMS);
    await table.change(layer, 'b', { spanCount: 20, wants: wants(0, 1, 2) }, 0, TERMS);
    assert.deepEqual((await table.look(layer, 0, TERMS, LIMITS)).unread, []);
    await table.change(layer, 'a', { spanCount: 20, released: [1] }, 0, TERMS);
    assert.deepEqual((await table.look(layer, 0, TERMS, LIMITS)).unread, [1]);
    await table.change(layer, 'a', { spanCount: 20, fetching: [2] }, 900, TERMS);
    assert.deepEqual((await table.look(layer, 1_500, TERMS, LIMITS)).unread, [0, 1], 'the lease of 2 was renewed');
    await table.change(layer, 'b', { spanCount: 20, fetching: [2], released: [2] }, 1_500, TERMS);
    assert.deepEqual(
      (await table.look(layer, 1_500, TERMS, LIMITS)).unread,
      [0, 1],
      'nobody takes a lease from another',
    );
    await table.leave(layer, 'a', 1_500);
    assert.deepEqual(await table.look(layer, 1_500, TERMS, LIMITS), {
      members: 1,
      outstanding: 0,
      waiting: [],
      unread: [0, 1, 2],
      late: [],
    });
  });

  it('a node that says anew what it has keeps its leases, and its place among those that wait', async (directory, layer) => {
    const { layers: table } = directory;
    const waiting = { load: 0, room: 1 };
    await table.change(layer, 'a', { spanCount: 20, have: wants(1, 2), wants: wants(3), waiting }, 0, TERMS);
    await table.change(layer, 'b', { spanCount: 20, wants: wants(2, 3, 4), fetching: [4] }, 0, TERMS);
    await table.change(layer, 'a', { spanCount: 20, fetching: [3] }, 0, TERMS);
    await table.change(layer, 'a', { spanCount: 20, have: wants(1), wants: wants(2, 3) }, 0, TERMS);
    const view = await table.look(layer, 0, TERMS, LIMITS);
    assert.deepEqual(view, { members: 2, outstanding: 2, waiting: [{ node: 'a', ...waiting }], unread: [2], late: [] });
    const [located] = await table.locate(layer, asks('b', [1], []), 0, TERMS);
    assert.deepEqual(located, { span: 1, from: ['a'], leased: false });
  });

  it('a lease that is too old is given to another, whatever its holder says, and never to itself again', async (directory, layer) => {
    const { layers: table } = directory;
    const waiting = { load: 0, room: 1 };
    const renewed = async (now: number) =>
      await table.change(layer, 'slow', { spanCount: 20, fetching: [5], waiting }, now, TERMS);
    await table.change(layer, 'slow', { spanCount: 20, wants: wants(5) }, 0, TERMS);
    for (let now = 0; now < 4 * LEASE_MS; now += LEASE_MS / 2) {
      await renewed(now);
      assert.deepEqual((await table.look(layer, now, TERMS, LIMITS)).unread, []);
      const [located] = await table.locate(layer, asks('b', [5], []), now, TERMS);
      assert.deepEqual(located, { span: 5, from: ['slow'], leased: false });
    }
    for (const now of [4 * LEASE_MS, 9 * LEASE_MS]) {
      await renewed(now);
      const view = await table.look(layer, now, TERMS, LIMITS);
      assert.deepEqual([view.outstanding, view.unread, view.late], [0, [5], ['slow']]);
      assert.deepEqual(await table.grant(layer, [{ node: 'slow', spans: [5] }], now, TERMS), []);
    }
    const now = 9 * LEASE_MS;
    const [located] = await table.locate(layer, asks('b', [5], []), now, TERMS);
    assert.equal(located?.leased, true);
    await renewed(now);
    const [again] = await table.locate(layer, asks('c', [5], []), now, TERMS);
    assert.deepEqual(again, { span: 5, from: ['b'], leased: false });
  });

  it('how long a read took is told when its span is there, and not of what came from a peer', async (directory, layer) => {
    const { layers: table } = directory;
    const change = async (node: string, more: object, now: number) =>
      await table.change(layer, node, { spanCount: 20, ...more }, now, TERMS);
    assert.deepEqual(await change('a', { fetching: [1, 2, 3] }, 0), []);
    assert.deepEqual(await change('a', { fetching: [1, 2, 3] }, 500), []);
    assert.deepEqual(await change('a', { gained: [1, 2], read: [1, 2] }, 700), [700, 700]);
    assert.deepEqual(await change('b', { gained: [3], read: [3] }, 800), []);
    assert.deepEqual(await change('a', { gained: [4] }, 900), []);
  });

  it('a node that reads one span after the other is late only when that does not go on', async (directory, layer) => {
    const { layers: table } = directory;
    const change = async (more: object, now: number) =>
      await table.change(layer, 'a', { spanCount: 20, ...more }, now, TERMS);
    await change({ wants: wants(1, 2, 3), fetching: [1, 2, 3] }, 0);
    assert.deepEqual(await change({ gained: [1], read: [1], fetching: [2, 3] }, 3 * LEASE_MS), [3 * LEASE_MS]);
    const fetching = { fetching: [2, 3] };
    for (let now = 4 * LEASE_MS; now < 7 * LEASE_MS; now += LEASE_MS / 2) {
      await change(fetching, now);
      assert.equal((await table.look(layer, now, TERMS, LIMITS)).outstanding, 2);
    }
    await change(fetching, 7 * LEASE_MS);
    assert.deepEqual((await table.look(layer, 7 * LEASE_MS, TERMS, LIMITS)).unread, [2, 3]);
    // Too late: they may have been given to others.
    await change({ gained: [2], read: [2] }, 8 * LEASE_MS);
    assert.deepEqual((await table.look(layer, 8 * LEASE_MS, TERMS, LIMITS)).unread, [3]);
  });

  it('a span is located at its holders, else at the one who fetches it, else leased to the asker', async (directory, layer) => {
    const { layers: table } = directory;
    await table.change(layer, 'a', { spanCount: 20, have: wants(1, 9) }, 0, TERMS);
    await table.change(layer, 'b', { spanCount: 20, have: wants(1), fetching: [2] }, 0, TERMS);
    const located = await table.locate(layer, asks('c', [1, 2, 3, 9], []), 0, TERMS);
    assert.deepEqual(
      located.map(({ span, from, leased }) => [span, [...from].sort(), leased]),
      [
        [1, ['a', 'b'], false],
        [2, ['b'], false],
        [3, [], true],
        [9, ['a'], false],
      ],
    );
    const [again] = await table.locate(layer, asks('d', [3], []), 0, TERMS);
    assert.deepEqual(again, { span: 3, from: ['c'], leased: false });
  });

  it('what only nodes have or fetch that are no use to the asker is leased to it', async (directory, layer) => {
    const { layers: table } = directory;
    await table.change(layer, 'slow', { spanCount: 20, have: wants(1, 2), fetching: [3] }, 0, TERMS);
    await table.change(layer, 'fast', { spanCount: 20, have: wants(2) }, 0, TERMS);
    assert.deepEqual(await table.locate(layer, asks('e', [1, 3], [], ['slow']), 0, TERMS), [
      { span: 1, from: [], leased: true },
      { span: 3, from: ['slow'], leased: false },
    ]);
    await table.change(layer, 'e', { spanCount: 20, released: [1] }, 0, TERMS);
    assert.deepEqual(await table.locate(layer, asks('c', [1, 2, 3], ['slow']), 0, TERMS), [
      { span: 1, from: [], leased: true },
      { span: 2, from: ['fast'], leased: false },
      { span: 3, from: [], leased: true },
    ]);
    // Others wait for who reads it now.
    const others = await table.locate(layer, asks('d', [1, 3], ['slow']), 0, TERMS);
    assert.deepEqual(
      others.map(({ from }) => from),
      [['c'], ['c']],
    );
    await table.change(layer, 'c', { spanCount: 20, gained: [1] }, 0, TERMS);
    assert.deepEqual((await table.look(layer, 0, TERMS, LIMITS)).unread, []);
  });

  it('what the only holder has lost or taken with it is unread again once it is wanted', async (directory, layer) => {
    const { layers: table } = directory;
    await table.change(layer, 'a', { spanCount: 20, have: wants(1, 2) }, 0, TERMS);
    await table.change(layer, 'b', { spanCount: 20, have: wants(2) }, 0, TERMS);
    await table.change(layer, 'a', { spanCount: 20, have: wants(2) }, 0, TERMS);
    await table.change(layer, 'b', { spanCount: 20, wants: wants(1) }, 0, TERMS);
    assert.deepEqual((await table.look(layer, 0, TERMS, LIMITS)).unread, [1]);
    await table.leave(layer, 'b', 0);
    await table.leave(layer, 'a', 0);
    assert.equal((await table.look(layer, 0, TERMS, LIMITS)).members, 0);
    assert.ok(!(await table.summaries(10_000)).some((summary) => summary.layer === layer));
  });

  it('a node that leaves and held nothing takes nothing away of what the others hold', async (directory, layer) => {
    const { layers: table } = directory;
    await table.change(layer, 'holds', { spanCount: 20, gained: [3] }, 0, TERMS);
    await table.change(layer, 'waits', { spanCount: 20, wants: wants(4), fetching: [5] }, 0, TERMS);
    await table.leave(layer, 'waits', 0);
    const asked = { node: 'asks', spans: [3], without: [], slow: [] };
    assert.deepEqual(await table.locate(layer, asked, 0, TERMS), [{ span: 3, from: ['holds'], leased: false }]);
    await table.change(layer, 'asks', { spanCount: 20, wants: wants(3, 5) }, 0, TERMS);
    const { members, unread } = await table.look(layer, 0, TERMS, LIMITS);
    assert.deepEqual([members, unread], [2, [4, 5]]);
    await table.leave(layer, 'asks', 0);
    await table.leave(layer, 'holds', 0);
  });

  it('removing a node takes it out of its layers; the summary counts', async (directory, layer) => {
    const { layers: table } = directory;
    await directory.nodes.put(record('x'), 0);
    await table.change(layer, 'x', { spanCount: 20, gained: [0, 1], read: [0, 1] }, 0, TERMS);
    await table.change(layer, 'y', { spanCount: 20, gained: [0], read: [0], wants: wants(7), fetching: [8] }, 0, TERMS);
    const summary = async () => (await table.summaries(10_000)).find((one) => one.layer === layer);
    const read = { reads: 3, readSpans: 2 };
    const counted = { layer, spanCount: 20, ...read, leases: 1, unread: 1 };
    assert.deepEqual(await summary(), { ...counted, members: 2, held: 2, copies: 3 });
    await directory.nodes.remove('x', 0);
    assert.deepEqual(await summary(), { ...counted, members: 1, held: 1, copies: 1 });
    const members = await table.members(layer, 10);
    assert.deepEqual(members, { total: 1, sample: ['y'] });
    await table.leave(layer, 'y', 0);
  });
}
