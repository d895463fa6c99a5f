import { readFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { sharedLayer, type StoredLayer } from '#test/cluster/shared-layer.ts';
import type { LayerPart, StartupSpan } from '#test/cluster/sharing-node.ts';
import { TestCluster, type ClusterNode, type Fetched } from '#test/cluster/test-cluster.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import type { BenchValues } from './bench.ts';
import { lazyFormat } from './lazy-image.ts';
import { recordStartup, type StartupPart } from './startup-set.ts';
import { mebibytes, median, printTable } from './table.ts';

export const title =
  'nodes with shaped links of their own start the same image at the same moment: with peers, and each from the registry';
export const options = {
  nodes: { type: 'string', default: '8' },
  mbit: { type: 'string', default: '200' },
  image: { type: 'string', default: 'python' },
  second: { type: 'string', default: 'perl' },
  format: { type: 'string', default: 'gzip-indexed' },
  mib: { type: 'string' },
  packing: { type: 'string', default: 'auto' },
} as const;

interface Run {
  readonly how: string;
  /** From the order to the last byte, of the first and of the last node. */
  readonly firstS: number;
  readonly lastS: number;
  /** (last - a node's own start) / bound. */
  readonly ofBound: number | undefined;
  /** What the start reads, and what of it no node had before. */
  readonly setBytes: number;
  readonly freshBytes: number;
  /** What the registry gave, of what no node had. */
  readonly amplification: number;
  /** Bytes that left the registry's host, headers and repetitions included, of the same. */
  readonly onTheWire: number;
  readonly cpu: Cpu;
}

/** Seconds of processor time in the measured window; `leastS` is what they take at least on all cores of this machine. */
interface Cpu {
  readonly nodeUserS: number;
  readonly nodeSystemS: number;
  /** Of a node, per MiB of the set. */
  readonly nodeMsPerMiB: number;
  readonly distributorsS: number;
  readonly serversS: number;
  /** Of the whole machine, others' included. */
  readonly softirqS: number;
  readonly leastS: number;
}

interface Case {
  readonly title: string;
  readonly parts: readonly StartupPart[];
}

/** Starts of a single node, to know what it takes by itself. */
const OWN_STARTS = 3;
/** Nodes that come later, with nothing, and start the second image. */
const LATE_NODES = 2;

/**
 * `--nodes 8 --mbit 200`: links, both ways, the registry's alike. `--image python --format gzip-indexed`: whose startup set, recorded from
 * one real start of this run. `--second perl`: which shares its base, started after it by two more nodes. `--mib 32`: instead, a layer of so many MiB that nothing
 * compresses. `--packing always,never`: with each of these in turn, as `KINDLING_PEER_PACKING`.
 */
export async function run(values: BenchValues<typeof options>, signal: AbortSignal): Promise<unknown> {
  if (process.getuid?.() !== 0) throw new Error('Cannot make network namespaces: run this as root');
  const nodes = Number(values.nodes);
  const bitsPerS = Number(values.mbit) * 1e6;
  const format = lazyFormat(values.format);
  await using folder = await TempFolder.create('bb');
  const cases: Case[] = [];
  if (values.mib === undefined) {
    await using registry = await TestRegistry.start({ folder: folder.path }, signal);
    for (const name of [values.image, ...(values.second === '' ? [] : [values.second])]) {
      console.log(`${name}: recording what a start reads`);
      const parts = await recordStartup({ name, format }, registry, folder.path, signal);
      cases.push({ title: `${name} ${format}`, parts });
    }
  } else {
    const spanBytes = 512 * 1024;
    const spans = Math.ceil((Number(values.mib) * 1024 * 1024) / spanBytes);
    const layer = await sharedLayer(spans, spanBytes, signal);
    const parts = [{ layer, indexFile: '', ranges: [[0, layer.sizeBytes]] as const }];
    cases.push({ title: `${values.mib} MiB`, parts });
  }
  const [first] = cases;
  if (first === undefined) throw new Error('There is nothing to start');
  console.log('a node alone');
  const own = await ownStart(first, signal);
  const boundS = (own.bytes / own.spans / (bitsPerS / 8)) * (own.spans + Math.floor(Math.log2(nodes)));
  const setting: Setting = { nodes, bitsPerS, own, boundS };
  const runs: Run[] = [];
  const packings = values.packing.split(',');
  for (const packing of packings) {
    console.log(`${nodes} nodes with peers, packing ${packing}`);
    const how = packings.length > 1 ? `peers, packing ${packing}` : 'peers';
    runs.push(...(await burst(how, cases, { ...setting, packing }, signal)));
  }
  console.log(`${nodes} nodes without`);
  runs.push(...(await burst('registry only', [first], setting, signal)));
  console.log(
    `${first.title}: ${nodes} nodes, ${values.mbit} Mbit/s each way; a start reads ${mebibytes(own.bytes)} MiB in ${own.spans} spans. No scheme gets them to all nodes in less than ${boundS.toFixed(2)} s; a node's own start, from a registry beside it, takes ${own.startS.toFixed(2)} s.`,
  );
  printTable(
    ['', 'first s', 'last s', 'of bound', 'registry', 'on the wire', 'node CPU s', 'ms/MiB', 'all CPU / cores s'],
    runs.map((one) => [
      one.how,
      one.firstS.toFixed(2),
      one.lastS.toFixed(2),
      one.ofBound?.toFixed(2) ?? '',
      one.amplification.toFixed(2),
      one.onTheWire.toFixed(2),
      `${one.cpu.nodeUserS.toFixed(2)} + ${one.cpu.nodeSystemS.toFixed(2)}`,
      one.cpu.nodeMsPerMiB.toFixed(0),
      one.cpu.leastS.toFixed(2),
    ]),
  );
  console.log(
    'of bound: without the own start. Where the last column is near to "last", processors and not links are waited for.',
  );
  return { nodes, bitsPerS, own, boundS, runs };
}

interface Setting {
  readonly nodes: number;
  readonly bitsPerS: number;
  readonly own: OwnStart;
  readonly boundS: number;
  /** undefined = without peers. */
  readonly packing?: string;
}

interface OwnStart {
  readonly bytes: number;
  readonly spans: number;
  readonly startS: number;
}

/** One node after another, with a registry beside it on a link that is as fast as the machine. */
async function ownStart(one: Case, signal: AbortSignal): Promise<OwnStart> {
  const layers = one.parts.map(({ layer }) => layer);
  await using cluster = await TestCluster.start({ nodes: OWN_STARTS, link: {}, layers, distributors: 0 }, signal);
  await publishIndexes(cluster, one, signal);
  const taken: Fetched[] = [];
  for (const node of cluster.nodes) taken.push(await node.startUp(partsOf(cluster, one), signal));
  const startup = taken[0]?.startup ?? [];
  const startS = median(taken.map(({ completeMs }) => completeMs)) / 1000;
  return { bytes: bytesOf(startup), spans: startup.length, startS };
}

/** All nodes but the late ones start the first image; then the late ones, which have nothing, start the second. */
async function burst(
  how: string,
  cases: readonly Case[],
  { nodes, bitsPerS, own, boundS, packing }: Setting,
  signal: AbortSignal,
): Promise<Run[]> {
  const layers = new Map<string, StoredLayer>();
  for (const { parts } of cases) for (const { layer } of parts) layers.set(layer.digest, layer);
  const late = cases.length > 1 ? LATE_NODES : 0;
  const distributors = packing === undefined ? 0 : 2;
  const env = { KINDLING_PEER_PACKING: packing ?? 'auto' };
  const options = { nodes: nodes + late, link: { bitsPerS }, layers: [...layers.values()], distributors, env };
  await using cluster = await TestCluster.start(options, signal);
  for (const one of cases) await publishIndexes(cluster, one, signal);
  const runs: Run[] = [];
  const there = new Set<string>();
  for (const [i, one] of cases.entries()) {
    const starting = i === 0 ? cluster.nodes.slice(0, nodes) : cluster.nodes.slice(nodes);
    const parts = partsOf(cluster, one);
    const before = await counters(cluster, signal);
    const taken = await Promise.all(starting.map(async (node) => await node.startUp(parts, signal)));
    const after = await counters(cluster, signal);
    await checkBytes(starting, parts, signal);
    const startup = taken[0]?.startup ?? [];
    const fresh = startup.filter((span) => !there.has(keyOf(span)));
    for (const span of startup) there.add(keyOf(span));
    const ends = taken.map(({ completeMs }) => completeMs / 1000);
    const freshBytes = bytesOf(fresh);
    runs.push({
      how: i === 0 ? how : `${one.title} on ${late} other nodes`,
      firstS: Math.min(...ends),
      lastS: Math.max(...ends),
      ofBound: i === 0 ? (Math.max(...ends) - own.startS) / boundS : undefined,
      setBytes: bytesOf(startup),
      freshBytes,
      amplification: taken.reduce((sum, { registry }) => sum + registry, 0) / freshBytes,
      onTheWire: (after.wireBytes - before.wireBytes) / freshBytes,
      cpu: used(before, after, starting.length, bytesOf(startup)),
    });
  }
  return runs;
}

function keyOf({ layer, span }: StartupSpan): string {
  return `${layer} ${span}`;
}

function bytesOf(spans: readonly StartupSpan[]): number {
  return spans.reduce((sum, { bytes }) => sum + bytes, 0);
}

function partsOf(cluster: TestCluster, { parts }: Case): LayerPart[] {
  return parts.map(({ layer, ranges }) => ({ layer: cluster.reference(layer), ranges }));
}

/** As the indexer has done when an image was pushed. */
async function publishIndexes(cluster: TestCluster, { parts }: Case, signal: AbortSignal): Promise<void> {
  for (const { layer, indexFile } of parts) {
    if (indexFile !== '') await cluster.nodes[0]?.publishIndex(cluster.reference(layer), indexFile, signal);
  }
}

/** What every node has got is the same. That it is right each node has checked, span by span, against the index. */
async function checkBytes(
  nodes: readonly ClusterNode[],
  parts: readonly LayerPart[],
  signal: AbortSignal,
): Promise<void> {
  const digests = await Promise.all(nodes.map(async (node) => (await node.startupDigest(parts, signal)).digest));
  if (new Set(digests).size !== 1) throw new Error('The nodes have got different bytes');
}

interface Counters {
  readonly wireBytes: number;
  readonly time: Awaited<ReturnType<TestCluster['processorTime']>>;
  readonly softirqMs: number;
}

async function counters(cluster: TestCluster, signal: AbortSignal): Promise<Counters> {
  const [total = ''] = (await readFile('/proc/stat', 'utf8')).split('\n');
  // cpu user nice system idle iowait irq softirq, in ticks of 10 ms
  const softirqMs = Number(total.trim().split(/\s+/)[7] ?? 0) * 10;
  return { wireBytes: await cluster.registryBytes(signal), time: await cluster.processorTime(), softirqMs };
}

function used(before: Counters, after: Counters, nodes: number, bytes: number): Cpu {
  const part = (name: keyof Counters['time'], mode: 'userMs' | 'systemMs') =>
    (after.time[name][mode] - before.time[name][mode]) / 1000;
  const both = (name: keyof Counters['time']) => part(name, 'userMs') + part(name, 'systemMs');
  const softirqS = (after.softirqMs - before.softirqMs) / 1000;
  return {
    nodeUserS: part('nodes', 'userMs') / nodes,
    nodeSystemS: part('nodes', 'systemMs') / nodes,
    nodeMsPerMiB: (both('nodes') * 1000) / nodes / (bytes / 1024 / 1024),
    distributorsS: both('distributors'),
    serversS: both('servers'),
    softirqS,
    leastS: (both('nodes') + both('distributors') + both('servers') + softirqS) / availableParallelism(),
  };
}
