import { simulateSwarm, type SwarmResult } from '#test/sim/swarm.ts';
import type { BenchValues } from './bench.ts';
import { printTable } from './table.ts';

export const title = 'bursts of starts on up to 10,000 simulated nodes, by the code that nodes and distributor run';
/** `nodes`: numbers of them, separated by commas. */
export const options = { nodes: { type: 'string', default: '1,8,100,1000,2500,10000' } } as const;

/** FaaSNet's case: an image of 428 MB of which 16 % is read, links of 1 Gbit/s. */
const IMAGE_BYTES = 428e6;
const READ = 0.16;
const BYTES_PER_S = 125e6;
const SPAN_BYTES = 512 * 1024;

export function run(values: BenchValues<typeof options>): Promise<unknown> {
  const results: SwarmResult[] = [];
  for (const nodes of values.nodes.split(',').map(Number)) {
    const started = performance.now();
    const result = simulateSwarm({ nodes, bytes: IMAGE_BYTES * READ, spanBytes: SPAN_BYTES, bytesPerS: BYTES_PER_S });
    if (result.registryReads !== result.spans)
      throw new Error(`${result.registryReads} reads of ${result.spans} spans`);
    results.push(result);
    console.error(`${nodes} nodes simulated in ${((performance.now() - started) / 1000).toFixed(1)} s`);
  }
  printTable(
    [
      'nodes',
      'bound s',
      'first s',
      'last s',
      'ratio',
      'registry',
      'requests',
      'busy',
      'residency',
      'distributor',
      'distributor/s',
      'directory/s',
    ],
    results.map((r) => [
      String(r.nodes),
      r.boundS.toFixed(3),
      r.firstS.toFixed(3),
      r.lastS.toFixed(3),
      r.ratio.toFixed(2),
      (r.registryReads / r.spans).toFixed(2),
      r.perNode.peerRequests.toFixed(0),
      r.perNode.busyAnswers.toFixed(0),
      r.perNode.residencyMessages.toFixed(0),
      r.perNode.distributorMessages.toFixed(1),
      ((r.perNode.distributorMessages * r.nodes) / r.lastS).toFixed(0),
      (r.directoryOperations / r.lastS).toFixed(0),
    ]),
  );
  console.log(
    'requests, busy answers, residency and distributor messages: per node, for the whole burst; distributor/s: of all nodes together, to spread over the replicas; directory/s: operations on Redis',
  );
  return Promise.resolve(results);
}
