import { parseArgs } from 'node:util';
import { sharedLayer, type SharedLayer } from '#test/cluster/shared-layer.ts';
import { TestCluster } from '#test/cluster/test-cluster.ts';
import { mebibytes, printTable } from './table.ts';

export const title =
  'nodes with shaped links of their own fetch the same layer at the same moment: with peers, and each alone';

interface Run {
  readonly how: 'peers' | 'registry only';
  readonly firstS: number;
  readonly lastS: number;
  /** Bytes of the layer that came from the registry, of its size. */
  readonly amplification: number;
  /** Bytes that left the registry's host, headers and repetitions included, of the layer's size. */
  readonly onTheWire: number;
}

/** `--nodes 8 --mbit 200 --mib 32`: of each link, both ways, the registry's alike; size of the layer. */
export async function run(args: readonly string[], signal = new AbortController().signal): Promise<unknown> {
  const { values } = parseArgs({
    args: [...args],
    options: {
      nodes: { type: 'string', default: '8' },
      mbit: { type: 'string', default: '200' },
      mib: { type: 'string', default: '32' },
    },
  });
  if (process.getuid?.() !== 0) throw new Error('Cannot make network namespaces: run this as root');
  const nodes = Number(values.nodes);
  const bitsPerS = Number(values.mbit) * 1e6;
  const spanBytes = 512 * 1024;
  const spans = Math.ceil((Number(values.mib) * 1024 * 1024) / spanBytes);
  const layer = await sharedLayer(spans, spanBytes, signal);
  const boundS = ((spanBytes * 8) / bitsPerS) * (spans + Math.floor(Math.log2(nodes)));
  const runs = [
    await burst('peers', nodes, bitsPerS, layer, signal),
    await burst('registry only', nodes, bitsPerS, layer, signal),
  ];
  console.log(
    `${nodes} nodes, ${values.mbit} Mbit/s each way, ${mebibytes(layer.sizeBytes)} MiB; no scheme is faster than ${boundS.toFixed(2)} s`,
  );
  printTable(
    ['', 'first s', 'last s', 'of bound', 'registry reads', 'on the wire'],
    runs.map((one) => [
      one.how,
      one.firstS.toFixed(2),
      one.lastS.toFixed(2),
      (one.lastS / boundS).toFixed(2),
      one.amplification.toFixed(2),
      one.onTheWire.toFixed(2),
    ]),
  );
  return { nodes, bitsPerS, bytes: layer.sizeBytes, boundS, runs };
}

async function burst(
  how: Run['how'],
  count: number,
  bitsPerS: number,
  layer: SharedLayer,
  signal: AbortSignal,
): Promise<Run> {
  const distributors = how === 'peers' ? 2 : 0;
  const link = { bitsPerS };
  await using cluster = await TestCluster.start({ nodes: count, link, layers: [layer], distributors }, signal);
  const reference = cluster.reference(layer);
  // What a node does before it fetches: the layer's table of contents, which is not shared.
  await Promise.all(cluster.nodes.map(async (node) => await node.provide(reference, signal)));
  const wireBefore = await cluster.registryBytes(signal);
  const started = performance.now();
  const ends: number[] = [];
  const fetched = await Promise.all(
    cluster.nodes.map(async (node) => {
      const result = await node.fetchAll(reference, signal);
      ends.push(result.completeMs);
      return result;
    }),
  );
  if (performance.now() - started < Math.max(...ends) / 2) throw new Error('The clocks of the nodes are wrong');
  const wire = (await cluster.registryBytes(signal)) - wireBefore;
  if (new Set(fetched.map(({ digest }) => digest)).size !== 1) throw new Error('The nodes have got different bytes');
  const read = fetched.reduce((sum, { registry }) => sum + registry, 0);
  return {
    how,
    firstS: Math.min(...ends) / 1000,
    lastS: Math.max(...ends) / 1000,
    amplification: read / layer.sizeBytes,
    onTheWire: wire / layer.sizeBytes,
  };
}
