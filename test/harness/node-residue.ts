import { readFile, readdir, readlink } from 'node:fs/promises';
import { join } from 'node:path';
import { ContainerdClient } from '#shared/containerd/containerd-client.ts';
import { SnapshotsService } from '#shared/containerd/gen/snapshots.ts';
import type { ProcessMemory } from './kindling.ts';
import { leakedMounts } from './leaks.ts';
import type { TestNode } from './node.ts';

/** How many descriptors of a kind a process has open: `file /path`, `socket`, `pipe`, `anon_inode:[eventpoll]`, ... */
export type Descriptors = Readonly<Record<string, number>>;

/** All that a node holds at a moment. */
export interface Residue {
  /** `type path` of each mount below the node's folder, as this process's namespace has it. */
  readonly mounts: readonly string[];
  /** Command lines of the processes of keeper and agent (all that have the keeper in their environment), and of shims. */
  readonly processes: readonly string[];
  readonly keeper: Descriptors;
  readonly agent: Descriptors;
  /** Layer folders on the disk, and layers that the agent knows. */
  readonly layersOnDisk: readonly string[];
  readonly layersKnown: readonly string[];
  /** Snapshots that the agent knows, and their folders. */
  readonly snapshots: readonly string[];
  readonly snapshotFolders: readonly string[];
  /** Mount points of layers. */
  readonly mountPoints: readonly string[];
  /** Files and folders that are only there while something is being made or taken away. */
  readonly temporary: readonly string[];
  readonly memory: { readonly keeper: ProcessMemory; readonly agent: ProcessMemory };
}

export async function residueOf(node: TestNode, signal: AbortSignal): Promise<Residue> {
  const { kindling, folder } = node;
  const { dataDir } = kindling;
  const agent = await kindling.agentPid();
  if (agent === undefined) throw new Error('There is no agent to look at');
  const layers = await names(join(dataDir, 'layers'));
  const temporary = layers.filter((name) => !/^[0-9a-f]{64}$/.test(name)).map((name) => `layers/${name}`);
  for (const layer of layers) {
    const files = await names(join(dataDir, 'layers', layer));
    temporary.push(...files.filter((name) => name.endsWith('.next')).map((name) => `layers/${layer}/${name}`));
  }
  temporary.push(...(await names(dataDir)).filter((name) => name.endsWith('.next')));
  return {
    mounts: (await leakedMounts(folder.path)).map(({ path, what }) => `${what} ${path}`).sort(),
    processes: await processesOf(node),
    keeper: await descriptorsOf(kindling.keeperPid),
    agent: await descriptorsOf(agent),
    layersOnDisk: layers.filter((name) => /^[0-9a-f]{64}$/.test(name)).sort(),
    layersKnown: (await kindling.client.layers(signal)).map(({ layer }) => layer.slice('sha256:'.length)).sort(),
    snapshots: await snapshotsOf(kindling.socket, signal),
    snapshotFolders: await names(join(dataDir, 's')),
    mountPoints: await names(join(dataDir, 'm')),
    temporary,
    memory: await kindling.memory(),
  };
}

/** Descriptors of any kind but files that may come and go: connections that are kept alive, threads that were started. */
const SPARE_DESCRIPTORS = 8;
/** The keeper does the same at each agent. */
const SPARE_KEEPER_DESCRIPTORS = 1;
const KEEPER_GROWTH_BYTES = 16 * 1024 * 1024;
const AGENT_GROWTH_BYTES = 96 * 1024 * 1024;

/** What `after` has that `before` had not; both are of a node without images and containers. */
export function leaksBetween(before: Residue, after: Residue): string[] {
  const leaks: string[] = [];
  const lists = ['mounts', 'snapshots', 'snapshotFolders', 'mountPoints', 'layersOnDisk', 'layersKnown'] as const;
  for (const list of lists) {
    const added = after[list].filter((item) => !before[list].includes(item));
    if (added.length > 0) leaks.push(`${list}: ${added.join(', ')}`);
  }
  if (after.temporary.length > 0) leaks.push(`temporary files: ${after.temporary.join(', ')}`);
  if (after.processes.length !== before.processes.length) leaks.push(`processes: ${after.processes.join(' | ')}`);
  leaks.push(...more('keeper', before.keeper, after.keeper, SPARE_KEEPER_DESCRIPTORS));
  leaks.push(...more('agent', before.agent, after.agent, SPARE_DESCRIPTORS));
  const grown = (of: 'keeper' | 'agent'): number => after.memory[of].residentBytes - before.memory[of].residentBytes;
  if (grown('keeper') > KEEPER_GROWTH_BYTES) leaks.push(`the keeper has grown by ${grown('keeper')} bytes`);
  if (grown('agent') > AGENT_GROWTH_BYTES) leaks.push(`the agent has grown by ${grown('agent')} bytes`);
  return leaks;
}

function more(process: string, before: Descriptors, after: Descriptors, spare: number): string[] {
  return Object.entries(after)
    .filter(([kind, count]) => count > (before[kind] ?? 0) + (kind.startsWith('file ') ? 0 : spare))
    .map(([kind, count]) => `descriptors of the ${process}: ${count} of ${kind}, ${before[kind] ?? 0} before`);
}

async function descriptorsOf(pid: number): Promise<Descriptors> {
  const counts: Record<string, number> = {};
  for (const fd of await readdir(`/proc/${pid}/fd`)) {
    // Closed in between; or only open for a look at another process.
    const target = await readlink(`/proc/${pid}/fd/${fd}`).catch(() => undefined);
    if (target === undefined || target.startsWith('/proc/')) continue;
    const kind = target.startsWith('/') ? `file ${target}` : target.replace(/:\[\d+\]$/, '');
    counts[kind] = (counts[kind] ?? 0) + 1;
  }
  return counts;
}

async function processesOf({ kindling, containerd }: TestNode): Promise<string[]> {
  const found: string[] = [];
  for (const pid of await readdir('/proc')) {
    if (!/^\d+$/.test(pid)) continue;
    const command = (await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).split('\0').join(' ').trim();
    const environment = await readFile(`/proc/${pid}/environ`, 'latin1').catch(() => '');
    const isOurs = environment.split('\0').includes(`KINDLING_KEEPER=${kindling.dataDir}/fuse`);
    const isShim = command.includes('containerd-shim') && command.includes(containerd.address);
    if (isOurs || isShim) found.push(`${pid} ${command}`);
  }
  return found;
}

/** Asked of the agent itself: containerd does not show what it does not know. */
async function snapshotsOf(socket: string, signal: AbortSignal): Promise<string[]> {
  const client = new ContainerdClient({ address: socket, namespace: 'test' });
  try {
    const found: string[] = [];
    const request = { snapshotter: 'kindling', filters: [] };
    for await (const { info } of client.stream(SnapshotsService.list, request, signal)) {
      found.push(...info.map(({ name }) => name));
    }
    return found.sort();
  } finally {
    client.close();
  }
}

async function names(folder: string): Promise<string[]> {
  return await readdir(folder).catch(() => []);
}
