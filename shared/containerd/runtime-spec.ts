import type { ImageConfig } from './image-records.ts';

/** Numeric identity of a container's process. */
export interface ProcessUser {
  readonly uid: number;
  readonly gid: number;
  readonly additionalGids: readonly number[];
}

export interface BindMount {
  readonly source: string;
  readonly destination: string;
  readonly readOnly: boolean;
}

export interface RuntimeSpecOptions {
  readonly id: string;
  readonly namespace: string;
  readonly config: ImageConfig;
  readonly user: ProcessUser;
  /** In place of the image's entrypoint and command; empty = the image's. */
  readonly args: readonly string[];
  /** `NAME=value`, over the image's. */
  readonly env: readonly string[];
  readonly cwd?: string | undefined;
  readonly mounts?: readonly BindMount[] | undefined;
  /** Share the host's network, else the container has a loopback of its own only. */
  readonly hostNetwork?: boolean | undefined;
  readonly readOnlyRoot?: boolean | undefined;
}

const DEFAULT_PATH = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** What containerd and Docker grant by default. */
const CAPABILITIES = [
  'CAP_CHOWN',
  'CAP_DAC_OVERRIDE',
  'CAP_FSETID',
  'CAP_FOWNER',
  'CAP_MKNOD',
  'CAP_NET_RAW',
  'CAP_SETGID',
  'CAP_SETUID',
  'CAP_SETFCAP',
  'CAP_SETPCAP',
  'CAP_NET_BIND_SERVICE',
  'CAP_SYS_CHROOT',
  'CAP_KILL',
  'CAP_AUDIT_WRITE',
];

const MASKED = ['acpi', 'asound', 'kcore', 'keys', 'latency_stats', 'timer_list', 'timer_stats', 'sched_debug', 'scsi'];
const READ_ONLY = ['bus', 'fs', 'irq', 'sys', 'sysrq-trigger'];

/** Arguments a container of this image starts with. @throws Error when neither image nor caller names a program. */
export function processArgs(config: ImageConfig, args: readonly string[]): readonly string[] {
  const all = args.length > 0 ? args : [...config.entrypoint, ...config.cmd];
  if (all.length === 0) throw new Error('Cannot start a container: the image names no command; give one');
  return all;
}

/** Later settings of a name win. */
export function mergeEnv(...lists: readonly (readonly string[])[]): readonly string[] {
  const merged = new Map<string, string>();
  for (const entry of lists.flat()) merged.set(entry.split('=', 1)[0] ?? entry, entry);
  return [...merged.values()];
}

/** An OCI runtime specification (config.json, version 1.0.2) as `ctr run` writes it. */
export function runtimeSpec(options: RuntimeSpecOptions): Readonly<Record<string, unknown>> {
  const { config, user } = options;
  const caps = { bounding: CAPABILITIES, effective: CAPABILITIES, permitted: CAPABILITIES };
  const binds = (options.mounts ?? []).map(({ source, destination, readOnly }) => ({
    destination,
    type: 'bind',
    source,
    options: ['rbind', readOnly ? 'ro' : 'rw'],
  }));
  const namespaces = ['pid', 'ipc', 'uts', 'mount', ...(options.hostNetwork === true ? [] : ['network'])];
  return {
    ociVersion: '1.0.2',
    process: {
      terminal: false,
      user,
      args: processArgs(config, options.args),
      env: mergeEnv([DEFAULT_PATH], config.env, options.env),
      cwd: options.cwd ?? config.workingDir,
      capabilities: caps,
      rlimits: [{ type: 'RLIMIT_NOFILE', hard: 1024, soft: 1024 }],
      noNewPrivileges: true,
    },
    root: { path: 'rootfs', ...(options.readOnlyRoot === true ? { readonly: true } : {}) },
    hostname: options.id.slice(0, 63),
    mounts: [
      { destination: '/proc', type: 'proc', source: 'proc', options: ['nosuid', 'noexec', 'nodev'] },
      {
        destination: '/dev',
        type: 'tmpfs',
        source: 'tmpfs',
        options: ['nosuid', 'strictatime', 'mode=755', 'size=65536k'],
      },
      {
        destination: '/dev/pts',
        type: 'devpts',
        source: 'devpts',
        options: ['nosuid', 'noexec', 'newinstance', 'ptmxmode=0666', 'mode=0620', 'gid=5'],
      },
      {
        destination: '/dev/shm',
        type: 'tmpfs',
        source: 'shm',
        options: ['nosuid', 'noexec', 'nodev', 'mode=1777', 'size=65536k'],
      },
      { destination: '/dev/mqueue', type: 'mqueue', source: 'mqueue', options: ['nosuid', 'noexec', 'nodev'] },
      { destination: '/sys', type: 'sysfs', source: 'sysfs', options: ['nosuid', 'noexec', 'nodev', 'ro'] },
      {
        destination: '/run',
        type: 'tmpfs',
        source: 'tmpfs',
        options: ['nosuid', 'strictatime', 'mode=755', 'size=65536k'],
      },
      ...binds,
    ],
    linux: {
      cgroupsPath: `/${options.namespace}/${options.id}`,
      namespaces: namespaces.map((type) => ({ type })),
      resources: { devices: [{ allow: false, access: 'rwm' }] },
      maskedPaths: [...MASKED.map((name) => `/proc/${name}`), '/sys/firmware'],
      readonlyPaths: READ_ONLY.map((name) => `/proc/${name}`),
    },
  };
}
