import { availableParallelism, hostname } from 'node:os';
import { z } from 'zod';
import { busSettings } from '#shared/bus/open-bus.ts';
import { bytes, flag, integer, list, type Values } from '#shared/config/settings.ts';
import { indexSettings } from '#shared/indexes/index-settings.ts';
import { DATA_FOLDER } from './data-folder.ts';
import { peerSettings } from './peers/peer-settings.ts';
import { registrySettings } from '#shared/registry/registry-settings.ts';
import { telemetrySettings } from '#shared/telemetry/telemetry-settings.ts';

const absolute = z.string().startsWith('/', 'an absolute path');

/** Settings of the node agent. */
export const SETTINGS = {
  dataDir: {
    ...DATA_FOLDER,
    schema: absolute,
    help: 'Folder of all that the agent keeps: layers, snapshots, mounts',
  },
  socket: {
    env: 'KINDLING_SOCKET',
    schema: absolute,
    default: '/run/kindling/snapshotter.sock',
    help: "Socket of the snapshots API: the address of containerd's proxy plugin",
  },
  controlSocket: {
    env: 'KINDLING_CONTROL_SOCKET',
    schema: absolute,
    default: '/run/kindling/control.sock',
    help: 'Socket that the command kindling talks to',
  },
  containerd: {
    env: 'KINDLING_CONTAINERD',
    schema: absolute,
    default: '/run/containerd/containerd.sock',
    help: "containerd's socket, for pulls",
  },
  snapshotter: {
    env: 'KINDLING_SNAPSHOTTER',
    schema: z.string().regex(/^[\w.-]{1,64}$/, 'the name of a proxy plugin'),
    default: 'kindling',
    help: "Name of our proxy plugin in containerd's configuration",
  },
  namespace: {
    env: 'KINDLING_NAMESPACE',
    schema: z.string().regex(/^[\w.-]{1,76}$/, 'a containerd namespace'),
    default: 'default',
    help: 'containerd namespace of pulls that name none',
  },
  quotaBytes: {
    env: 'KINDLING_QUOTA',
    schema: bytes,
    default: '0',
    unit: 'bytes',
    help: 'What layers may occupy on the disk; 0 = no limit. Layers that are mounted are never evicted',
  },
  workers: {
    env: 'KINDLING_WORKERS',
    schema: integer.pipe(z.int().min(2).max(64)),
    default: String(Math.min(8, Math.max(2, availableParallelism())) + 1),
    help: 'Threads that decode and verify; one of them is kept free for reads that somebody waits for',
  },
  background: {
    env: 'KINDLING_BACKGROUND',
    schema: flag,
    default: 'true',
    help: 'Complete mounted layers in the background, so that containers stop depending on the registry and on the agent, and read ahead where the link is fast; without it only what a start reads or an image has put first is fetched',
  },
  backgroundRate: {
    env: 'KINDLING_BACKGROUND_RATE',
    schema: bytes,
    default: '64M',
    unit: 'bytes/s',
    help: 'Rate of background completion; 0 = no limit',
  },
  backgroundQuietMs: {
    env: 'KINDLING_BACKGROUND_QUIET_MS',
    schema: integer.pipe(z.int().min(0).max(3_600_000)),
    default: '5000',
    unit: 'ms',
    help: 'Background completion waits until nothing was asked for this long',
  },
  readDeadlineMs: {
    env: 'KINDLING_READ_DEADLINE_MS',
    schema: integer.pipe(z.int().min(0).max(3_600_000)),
    default: '10000',
    unit: 'ms',
    help: 'How long a read is retried after the first failure until its reader gets EIO',
  },
  ...registrySettings,
  ...indexSettings,
  ...busSettings,
  ...peerSettings,
  nodeName: {
    env: 'KINDLING_NODE_NAME',
    schema: z.string().min(1).max(253),
    default: hostname(),
    help: "Name of this node in the cluster: the same after each restart, and no other node's",
  },
  subscribe: {
    env: 'KINDLING_SUBSCRIBE',
    schema: list,
    default: '*',
    help: 'Images that this node pulls lazily by itself once the cluster has indexed them: host[:port], host/path, host/path/*, * or "none"',
  },
  fuse: {
    env: 'KINDLING_FUSE',
    schema: z.enum(['auto', 'device', 'native']),
    default: 'auto',
    help: 'FUSE transport: device survives the end of the agent (Linux >= 6.9), native is fuse-native',
  },
  ...telemetrySettings,
} as const;

export type AgentValues = Values<typeof SETTINGS>;
