import { HINDRANCES, KILLS, playOut, UNDISTURBED, type Outcome } from '#test/cluster/fault-scenarios.ts';
import { sharedLayer } from '#test/cluster/shared-layer.ts';
import { TestCluster } from '#test/cluster/test-cluster.ts';
import type { BenchValues } from './bench.ts';
import { printTable } from './table.ts';

export const title =
  'a burst of starts during which nodes, links, Redis, NATS or peers fail: how late, and what the registry gives';
export const options = {
  nodes: { type: 'string', default: '8' },
  mbit: { type: 'string', default: '100' },
  mib: { type: 'string', default: '16' },
  only: { type: 'string', default: '' },
} as const;

const FILE_BYTES = 512 * 1024;

/** `--nodes 8 --mbit 100 --mib 16`: of each link, both ways, the registry's alike; size of the layer that all nodes start with. `--only TEXT`: faults whose name has it. */
export async function run(values: BenchValues<typeof options>, signal: AbortSignal): Promise<unknown> {
  if (process.getuid?.() !== 0) throw new Error('Cannot make network namespaces: run this as root');
  const nodes = Number(values.nodes);
  const link = { bitsPerS: Number(values.mbit) * 1e6 };
  const files = Math.ceil((Number(values.mib) * 1024 * 1024) / FILE_BYTES);
  const outcomes: Outcome[] = [];
  const faults = [...KILLS, ...HINDRANCES].filter(({ name }) => name.includes(values.only));
  for (const scenario of [UNDISTURBED, ...faults]) {
    // Each in a cluster of its own: what one has taught the nodes is no help to the next.
    const layer = await sharedLayer(files, FILE_BYTES, signal);
    await using cluster = await TestCluster.start({ nodes, link, layers: [layer], distributors: 2 }, signal);
    outcomes.push(await playOut(scenario, cluster, layer, link, signal));
    console.error(`${scenario.name}: done`);
  }
  const [undisturbed] = outcomes;
  console.log(
    `${nodes} nodes, ${values.mbit} Mbit/s each way, ${values.mib} MiB; all bytes are right; "later": the slowest start, than with no fault`,
  );
  printTable(
    ['fault', 'last s', 'later s', 'registry reads', 'explained', 'since'],
    outcomes.map(({ name, lastS, registryReads, allowed, because }) => [
      name,
      lastS.toFixed(2),
      (lastS - (undisturbed?.lastS ?? 0)).toFixed(2),
      registryReads.toFixed(2),
      allowed.toFixed(1),
      because,
    ]),
  );
  const more = outcomes.filter(({ registryReads, allowed }) => registryReads > allowed);
  for (const { name, details } of more) console.log(`more than explained: ${name}: ${details}`);
  return { nodes, bitsPerS: link.bitsPerS, bytes: files * FILE_BYTES, outcomes };
}
