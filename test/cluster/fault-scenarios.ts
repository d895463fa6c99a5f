import { setTimeout as sleep } from 'node:timers/promises';
import type { Misbehaviour } from './misbehaviour.ts';
import type { Link } from './network.ts';
import type { SharedLayer } from './shared-layer.ts';
import type { LayerReference } from './sharing-node.ts';
import type { ClusterNode, Fetched, TestCluster } from './test-cluster.ts';

/** Where a scenario is played: a cluster, and a layer that nobody has yet. */
export interface Field {
  readonly cluster: TestCluster;
  readonly layer: LayerReference;
  /** Whom the fault hits; it is whole again at the end. */
  readonly victim: ClusterNode;
  readonly others: readonly ClusterNode[];
  readonly link: Link;
}

type Happening = (cluster: TestCluster, signal: AbortSignal) => Promise<void> | void;

export interface Scenario {
  readonly name: string;
  /** What the registry may give, in sizes of the layer: `once` for all, and what the fault explains. */
  readonly allowed: (nodes: number) => number;
  readonly because: string;
  /** The starts of the nodes that the fault did not end. */
  readonly play: (field: Field, signal: AbortSignal) => Promise<readonly Fetched[]>;
}

export interface Outcome {
  readonly name: string;
  /** Of the slowest start. */
  readonly lastS: number;
  /** What left the registry's host, packets' headers included, in sizes of the layer. */
  readonly registryReads: number;
  readonly allowed: number;
  readonly because: string;
  /** What each start has taken from where. */
  readonly details: string;
}

/** On which a start lasts longer than a node takes to come back. */
const NARROW: Link = { bitsPerS: 10_000_000 };
const SLOW: Link = { bitsPerS: 1_000_000 };
const SMALL_DISK_BYTES = 1536 * 1024;
const DEATHS = 2;
/** Packets' and requests' headers, of a layer that is read by all nodes. */
const HEADERS = 0.4;
/** Of a layer. */
const BEGUN = 0.05;
const WHOLE_MS = 60_000;
const POLL_MS = 10;

/** Without a fault: what the others are compared with. Headers, tables of contents and a lease given on are in it. */
export const UNDISTURBED: Scenario = {
  name: 'nothing happens',
  allowed: () => 1.6,
  because: 'each span once',
  play: async ({ victim, others, layer }, signal) => await all([victim, ...others], layer, signal),
};

/** Processes end without a word. */
export const KILLS: readonly Scenario[] = [
  {
    name: 'a node that feeds others is killed',
    allowed: () => 2.2,
    because: 'what only it had, at most everything, is read again',
    play: async ({ victim, others, layer }, signal) => {
      const starts = all(others, layer, signal);
      await killInMidStart(victim, layer, signal);
      return [...(await starts), ...(await backAgain(victim, layer, signal))];
    },
  },
  {
    name: 'the node that reads from the registry for all is killed',
    allowed: () => 2.2,
    because: 'its leases are given to others',
    play: async ({ victim, others, layer }, signal) => {
      const dying = ended(victim, layer, signal);
      await begun(victim, layer, signal);
      const starts = all(others, layer, signal);
      await begun(others[0] ?? victim, layer, signal);
      victim.kill();
      await dying;
      return [...(await starts), ...(await backAgain(victim, layer, signal))];
    },
  },
  {
    name: 'Redis is killed and comes back empty',
    allowed: (nodes) => nodes + HEADERS,
    because: 'while it is away nobody says who reads what: at most each node everything',
    play: inMidStart(async (cluster, signal) => await cluster.restartRedis(signal)),
  },
  {
    name: 'NATS is killed and comes back',
    allowed: (nodes) => nodes + HEADERS,
    because: 'while it is away nobody says who reads what: at most each node everything',
    play: inMidStart(
      (cluster) => cluster.killNats(),
      async (cluster, signal) => await cluster.restartNats(signal),
    ),
  },
  {
    name: 'one of two distributors stands still',
    allowed: () => 3,
    because: 'what nodes tell it is lost while it does: leases run out, and what somebody has is read again',
    play: async ({ cluster, victim, others, layer }, signal) => {
      cluster.distributors[0]?.kill('SIGSTOP');
      const done = await all([victim, ...others], layer, signal);
      cluster.distributors[0]?.kill('SIGCONT');
      return done;
    },
  },
  {
    name: 'one of two distributors is killed',
    allowed: (nodes) => nodes + HEADERS,
    because: 'whoever it does not answer reads by itself until the other has answered',
    play: inMidStart((cluster) => cluster.distributors[0]?.kill('SIGKILL')),
  },
];

/** Nodes that are there and are no help. */
export const HINDRANCES: readonly Scenario[] = [
  {
    name: 'a node is cut off',
    allowed: () => 2.2,
    because: 'what only it had, at most everything, is read again',
    play: async ({ cluster, victim, others, layer }, signal) => {
      const given = new AbortController();
      const cutting = ended(victim, layer, AbortSignal.any([signal, given.signal]));
      const starts = all(others, layer, signal);
      await begun(victim, layer, signal);
      await cluster.network.connect(victim.host, false, signal);
      const done = await starts;
      await cluster.network.connect(victim.host, true, signal);
      given.abort();
      await cutting;
      return [...done, await victim.fetchAll(layer, signal)];
    },
  },
  {
    name: 'the link of the only node that has the layer slows down to 1 Mbit/s',
    allowed: (nodes) => 1.5 + nodes / 2,
    because: 'once by it, once by readers that do not wait for it, and what each has read until it knew',
    play: async ({ cluster, victim, others, layer, link }, signal) => {
      const first = await victim.fetchAll(layer, signal);
      const starts = Promise.all(others.map(async (node) => await node.read(layer, signal)));
      await begun(others[0] ?? victim, layer, signal);
      await cluster.network.shape(victim.host, SLOW, signal);
      const done = await starts;
      await cluster.network.shape(victim.host, link, signal);
      return [first, ...done];
    },
  },
  {
    name: 'the link of the node that reads from the registry for all slows down to 1 Mbit/s',
    allowed: () => 3,
    because: 'once by it, once by those that do not wait for it, and what each has read until it knew',
    play: async ({ cluster, victim, others, layer, link }, signal) => {
      const slow = ended(victim, layer, signal);
      await begun(victim, layer, signal);
      await cluster.network.shape(victim.host, SLOW, signal);
      const done = await all(others, layer, signal);
      await cluster.network.shape(victim.host, link, signal);
      await slow;
      return [...done, await victim.fetchAll(layer, signal)];
    },
  },
  ...(['flips', 'truncates', 'stalls', 'lies'] as const).map(misbehaving),
  {
    name: 'the disk of a node is full',
    allowed: () => 3,
    because: 'the node reads what it cannot keep, and again once it can',
    play: async ({ victim, others, layer }, signal) => {
      await victim[Symbol.asyncDispose]();
      await victim.limitDisk(SMALL_DISK_BYTES, signal);
      await victim.start(signal);
      const failing = victim.read(layer, signal).then(
        () => Promise.reject(new Error('A layer was read that has no room')),
        (error: unknown) => {
          if (!String(error).includes('the disk is full')) throw error;
        },
      );
      const [done] = await Promise.all([all(others, layer, signal), failing]);
      await victim[Symbol.asyncDispose]();
      await victim.limitDisk(undefined, signal);
      await victim.start(signal);
      return [...done, await victim.fetchAll(layer, signal)];
    },
  },
  {
    name: 'a node comes and is killed again and again',
    allowed: () => 3,
    because: 'each life of it takes what it has read for all with it',
    play: async ({ cluster, victim, others, layer, link }, signal) => {
      const hosts = [cluster.registry, victim.host, ...others.map(({ host }) => host)];
      for (const host of hosts) await cluster.network.shape(host, NARROW, signal);
      const starts = all(others, layer, signal);
      for (let death = 0; death < DEATHS; death++) {
        await killInMidStart(victim, layer, signal);
        await victim[Symbol.asyncDispose]();
        await victim.start(signal);
      }
      const done = await starts;
      for (const host of hosts) await cluster.network.shape(host, link, signal);
      return [...done, await victim.fetchAll(layer, signal)];
    },
  },
];

/** @throws when a start has ended with other bytes than the others */
export async function playOut(
  scenario: Scenario,
  cluster: TestCluster,
  layer: SharedLayer,
  link: Link,
  signal: AbortSignal,
): Promise<Outcome> {
  const victim = cluster.nodes.at(-1);
  if (victim === undefined || cluster.nodes.length < 2) throw new Error('A scenario needs two nodes or more');
  const { name, because } = scenario;
  const field = { cluster, victim, others: cluster.nodes.slice(0, -1), layer: cluster.reference(layer), link };
  await whole(cluster, field.layer, signal);
  const before = await cluster.registryBytes(signal);
  const starts = await scenario.play(field, signal);
  const registryReads = ((await cluster.registryBytes(signal)) - before) / layer.sizeBytes;
  if (new Set(starts.map(({ digest }) => digest)).size !== 1) throw new Error(`${name}: nodes have got other bytes`);
  const allowed = scenario.allowed(cluster.nodes.length);
  const lastS = Math.max(...starts.map(({ completeMs }) => completeMs)) / 1000;
  const details = JSON.stringify(starts.map(({ registry, peer, completeMs }) => ({ registry, peer, completeMs })));
  return { name, lastS, registryReads, allowed, because, details };
}

function misbehaving(how: Misbehaviour): Scenario {
  const what = {
    flips: 'flips bits',
    truncates: 'ends within a span',
    breaks: 'breaks off',
    stalls: 'stalls',
    lies: 'lies',
  };
  return {
    name: `the only node that has the layer ${what[how]}`,
    allowed: () => 3,
    because: 'once by it, once by the others, and what each has read until it knew',
    play: async ({ victim, others, layer }, signal) => {
      const first = await victim.fetchAll(layer, signal);
      await victim.misbehave(layer, how, signal);
      const done = await all(others, layer, signal);
      await victim[Symbol.asyncDispose]();
      await victim.start(signal);
      return [first, ...done];
    },
  };
}

/** All nodes start, `fault` comes when one has begun, `mended` when all are done. */
function inMidStart(fault: Happening, mended: Happening = () => {}): Scenario['play'] {
  return async ({ cluster, victim, others, layer }, signal) => {
    const starts = all([victim, ...others], layer, signal);
    await begun(victim, layer, signal);
    await fault(cluster, signal);
    const done = await starts;
    await mended(cluster, signal);
    return done;
  };
}

async function all(nodes: readonly ClusterNode[], layer: LayerReference, signal: AbortSignal): Promise<Fetched[]> {
  return await Promise.all(nodes.map(async (node) => await node.fetchAll(layer, signal)));
}

/** The node's start, however it ends. */
async function ended(node: ClusterNode, layer: LayerReference, signal: AbortSignal): Promise<void> {
  await node.fetchAll(layer, signal).catch(() => {});
}

/** Until the node has got something of the layer, beside its table of contents. */
async function begun(node: ClusterNode, layer: LayerReference, signal: AbortSignal): Promise<void> {
  for (;;) {
    const { peer, registry } = await node.figures(layer, signal);
    if (peer + registry > BEGUN * layer.sizeBytes) return;
    await sleep(POLL_MS, undefined, { signal });
  }
}

async function killInMidStart(node: ClusterNode, layer: LayerReference, signal: AbortSignal): Promise<void> {
  const dying = ended(node, layer, signal);
  await Promise.race([begun(node, layer, signal), dying]);
  node.kill();
  await dying;
}

async function backAgain(node: ClusterNode, layer: LayerReference, signal: AbortSignal): Promise<Fetched[]> {
  await node[Symbol.asyncDispose]();
  await node.start(signal);
  return [await node.fetchAll(layer, signal)];
}

/** Until the distributor answers all nodes: after the fault before. */
async function whole(cluster: TestCluster, layer: LayerReference, signal: AbortSignal): Promise<void> {
  const deadlineMs = performance.now() + WHOLE_MS;
  const up = async (node: ClusterNode) => (await node.figures(layer, signal)).up;
  for (;;) {
    if ((await Promise.all(cluster.nodes.map(up))).every(Boolean)) return;
    if (performance.now() > deadlineMs) {
      throw new Error(`No distributor answers: ${cluster.distributors.map(({ log }) => log).join('\n')}`);
    }
    await sleep(POLL_MS, undefined, { signal });
  }
}
