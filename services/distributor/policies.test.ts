import assert from 'node:assert/strict';
import { test } from 'node:test';
import { chooseLeases, LeaseAges } from './lease-policy.ts';
import { chooseNeighbours } from './neighbour-policy.ts';
import { suspectsOf } from './report-policy.ts';

const waiting = [
  { node: 'busy', load: 5, room: 10 },
  { node: 'idle', load: 0, room: 10 },
  { node: 'half', load: 2, room: 10 },
];
const limits = { outstanding: 4, samples: 32, alone: 64 };

/** Goes round, so that every sample is looked at. */
function round(): () => number {
  let i = 0;
  return () => (i++ % 7) / 7;
}

test('the least busy of those that wait get the next spans, one each', () => {
  const grants = chooseLeases({ members: 9, outstanding: 2, waiting, unread: [4, 5, 6, 7], late: [] }, round(), limits);
  assert.deepEqual(grants, [
    { node: 'idle', spans: [4] },
    { node: 'half', spans: [5] },
  ]);
});

test('no lease is given beyond the limit, nor without someone who waits or something to read', () => {
  assert.deepEqual(chooseLeases({ members: 9, outstanding: 4, waiting, unread: [1], late: [] }, round(), limits), []);
  assert.deepEqual(
    chooseLeases({ members: 9, outstanding: 0, waiting: [], unread: [1], late: [] }, round(), limits),
    [],
  );
  assert.deepEqual(chooseLeases({ members: 9, outstanding: 0, waiting, unread: [], late: [] }, round(), limits), []);
});

test('one that is late with another span gets none, unless nobody else waits', () => {
  const view = { members: 9, outstanding: 0, waiting, unread: [1, 2, 3], late: ['idle', 'half'] };
  assert.deepEqual(chooseLeases(view, round(), limits), [{ node: 'busy', spans: [1] }]);
  const only = { ...view, waiting: waiting.slice(1, 2) };
  assert.deepEqual(chooseLeases(only, round(), limits), [{ node: 'idle', spans: [1] }]);
});

test('a node that is alone gets as much as it has room for', () => {
  const alone = [{ node: 'a', load: 0, room: 3 }];
  const grants = chooseLeases(
    { members: 1, outstanding: 9, waiting: alone, unread: [1, 2, 3, 4], late: [] },
    round(),
    limits,
  );
  assert.deepEqual(grants, [{ node: 'a', spans: [1, 2, 3] }]);
});

test('a lease may be several times as old as reads have lately taken, within bounds', () => {
  const ages = new LeaseAges();
  assert.equal(ages.terms.ageMs, 6_000);
  for (let i = 0; i < 3; i++) ages.took(10);
  assert.equal(ages.terms.ageMs, 6_000, 'too few to know');
  ages.took(10);
  assert.equal(ages.terms.ageMs, 2_000);
  // One that was slow is no rule.
  ages.took(9_000);
  assert.equal(ages.terms.ageMs, 2_000);
  for (let i = 0; i < 17; i++) ages.took(1_200);
  assert.equal(ages.terms.ageMs, 4_800);
  for (let i = 0; i < 40; i++) ages.took(5_000);
  assert.equal(ages.terms.ageMs, 12_000);
});

test('most neighbours are of the own zone, some of others, never the node itself', () => {
  const members = Array.from({ length: 40 }, (_, i) => ({ node: `n${i}`, zone: i % 2 === 0 ? 'a' : 'b' }));
  const chosen = chooseNeighbours({ node: 'n0', zone: 'a' }, members, round());
  assert.equal(chosen.length, 10);
  assert.equal(new Set(chosen).size, 10);
  assert.ok(!chosen.includes('n0'));
  const near = chosen.filter((node) => Number(node.slice(1)) % 2 === 0);
  assert.equal(near.length, 7);
});

test('where the own zone has few members the rest come from others, and the other way round', () => {
  const members = [{ node: 'x', zone: 'a' }, ...Array.from({ length: 20 }, (_, i) => ({ node: `n${i}`, zone: 'b' }))];
  assert.equal(chooseNeighbours({ node: 'self', zone: 'a' }, members, round()).length, 10);
  assert.equal(chooseNeighbours({ node: 'self', zone: 'b' }, members, round()).length, 10);
  assert.deepEqual(chooseNeighbours({ node: 'x', zone: 'a' }, [{ node: 'x', zone: 'a' }], round()), []);
});

test('a suspect is a neighbour only where there are no others', () => {
  const members = Array.from({ length: 12 }, (_, i) => ({ node: `n${i}`, zone: 'a', suspected: i >= 8 }));
  const chosen = chooseNeighbours({ node: 'self', zone: 'a' }, members, round());
  assert.equal(chosen.length, 10);
  assert.deepEqual(chosen.slice(0, 8).toSorted(), ['n0', 'n1', 'n2', 'n3', 'n4', 'n5', 'n6', 'n7']);
  const more = members.map((one, i) => ({ ...one, suspected: i === 0 }));
  assert.ok(!chooseNeighbours({ node: 'self', zone: 'a' }, more, round()).includes('n0'));
});

test('reports are believed from three different addresses, and not from one that accuses everybody', () => {
  const by = (suspect: string, ...reporters: readonly string[]) => reporters.map((reporter) => ({ suspect, reporter }));
  assert.deepEqual([...suspectsOf([...by('bad', 'a', 'b', 'c'), ...by('good', 'a', 'b', 'b')])], ['bad']);
  const angry = Array.from({ length: 9 }, (_, i) => ({ suspect: `n${i}`, reporter: 'c' }));
  assert.deepEqual([...suspectsOf([...by('n0', 'a', 'b'), ...angry])], []);
});
