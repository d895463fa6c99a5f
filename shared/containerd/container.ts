import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import type { ContainerdClient } from './containerd-client.ts';
import { ContainerdError } from './containerd-error.ts';
import { openFifo, type Fifo } from './fifo.ts';
import { ContainersService } from './gen/containers.ts';
import { SnapshotsService } from './gen/snapshots.ts';
import { TasksService } from './gen/tasks.ts';
import { chainIds, type StoredImage } from './image-records.ts';
import { withLease } from './leases.ts';
import { resolveUser, snapshotFileReader } from './process-user.ts';
import { runtimeSpec, type BindMount } from './runtime-spec.ts';

export interface RunContainerOptions {
  /** Letters, digits, `-`, `_` and `.`; unique in the namespace. */
  readonly id: string;
  readonly image: StoredImage;
  readonly snapshotter: string;
  /** In place of the image's entrypoint and command; empty = the image's. */
  readonly args?: readonly string[];
  readonly env?: readonly string[];
  readonly cwd?: string;
  readonly mounts?: readonly BindMount[];
  readonly hostNetwork?: boolean;
  readonly labels?: Readonly<Record<string, string>>;
  /** Told as each stage is behind us, for a waterfall. */
  readonly onStage?: (stage: 'snapshot' | 'container' | 'task' | 'started') => void;
  /** Told the first process when its root is mounted and the image's program does not run yet. */
  readonly onCreated?: (pid: number) => void;
}

export interface ContainerExit {
  /** 0-255; 128 + n after signal n. */
  readonly exitCode: number;
}

/** A container that this process has started and must `remove`. */
export interface RunningContainer {
  readonly id: string;
  readonly pid: number;
  /** End after the process's last byte. A reader must consume both, or the process stops at a full pipe. */
  readonly stdout: Readable;
  readonly stderr: Readable;
  /** Resolves when the first process has ended. */
  readonly exited: Promise<ContainerExit>;
  kill(signalNumber: number, signal: AbortSignal): Promise<void>;
  /** Ends the process if it runs, and removes task, container, snapshot and pipes. Idempotent. */
  remove(signal: AbortSignal): Promise<void>;
}

const RUNTIME = 'io.containerd.runc.v2';
const SPEC_TYPE = 'types.containerd.io/opencontainers/runtime-spec/1/Spec';
const SIGKILL = 9;
/** Creating a container takes milliseconds, reading a cold layer seconds; what is left after an hour is garbage. */
const LEASE_EXPIRY_MS = 60 * 60 * 1000;
const ID = /^[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*$/;

/**
 * Does what `ctr run` does: a snapshot on the image's top layer, a container record with a runtime specification of our
 * own, a task whose output comes through named pipes. What was made is removed again when a step fails.
 */
export async function runContainer(
  client: ContainerdClient,
  options: RunContainerOptions,
  signal: AbortSignal,
): Promise<RunningContainer> {
  const { id, snapshotter, image } = options;
  if (!ID.test(id) || id.length > 76) {
    throw new Error(`Cannot create container ${JSON.stringify(id)}: 1-76 letters, digits, ".", "_" or "-" are allowed`);
  }
  const undo: ((signal: AbortSignal) => Promise<unknown>)[] = [];
  const removeAll = async (cleanup: AbortSignal): Promise<void> => {
    for (let step = undo.pop(); step !== undefined; step = undo.pop()) await ignoreMissing(step(cleanup));
  };
  try {
    const folder = await mkdtemp(join(tmpdir(), 'kindling-io-'));
    undo.push(() => rm(folder, { recursive: true, force: true }));
    const stdout = openFifo(join(folder, 'stdout'));
    undo.push(() => closeFifo(stdout));
    const stderr = openFifo(join(folder, 'stderr'));
    undo.push(() => closeFifo(stderr));
    const mounts = await withLease(client, { purpose: 'run', expiryMs: LEASE_EXPIRY_MS }, signal, async (leased) => {
      const parent = chainIds(image.config.diffIds).at(-1) ?? '';
      const prepared = await leased.unary(
        SnapshotsService.prepare,
        { snapshotter, key: id, parent, labels: {} },
        signal,
      );
      undo.push((cleanup) => client.unary(SnapshotsService.remove, { snapshotter, key: id }, cleanup));
      options.onStage?.('snapshot');
      const user = await resolveUser(image.config.user, snapshotFileReader(prepared.mounts, signal));
      const spec = runtimeSpec({
        id,
        namespace: client.namespace,
        config: image.config,
        user,
        args: options.args ?? [],
        env: options.env ?? [],
        cwd: options.cwd,
        mounts: options.mounts,
        hostNetwork: options.hostNetwork,
      });
      await leased.unary(
        ContainersService.create,
        {
          container: {
            id,
            labels: { ...options.labels },
            image: image.name,
            runtime: { name: RUNTIME, options: undefined },
            spec: { typeUrl: SPEC_TYPE, value: Buffer.from(JSON.stringify(spec)) },
            snapshotter,
            snapshotKey: id,
            createdAt: undefined,
            updatedAt: undefined,
            extensions: {},
            sandbox: '',
          },
        },
        signal,
      );
      undo.push((cleanup) => client.unary(ContainersService.delete, { id }, cleanup));
      options.onStage?.('container');
      return prepared.mounts;
    });
    const created = await client.unary(
      TasksService.create,
      {
        containerId: id,
        rootfs: mounts,
        stdin: '',
        stdout: stdout.path,
        stderr: stderr.path,
        terminal: false,
        checkpoint: undefined,
        options: undefined,
        runtimePath: '',
        taskApiAddress: '',
        taskApiVersion: 0,
      },
      signal,
    );
    let ended = false;
    undo.push(async (cleanup) => {
      if (!ended) await ignoreMissing(client.unary(TasksService.kill, killRequest(id, SIGKILL), cleanup));
      if (!ended) await ignoreMissing(client.unary(TasksService.wait, { containerId: id, execId: '' }, cleanup));
      await client.unary(TasksService.delete, { containerId: id }, cleanup);
    });
    options.onStage?.('task');
    options.onCreated?.(created.pid);
    // Waiting is asked for before the start, so that no exit is missed. It ends with the container, or with the client.
    const exited = client
      .unary(TasksService.wait, { containerId: id, execId: '' }, new AbortController().signal)
      .then((answer) => {
        ended = true;
        stdout.finish();
        stderr.finish();
        return { exitCode: answer.exitStatus };
      });
    exited.catch(() => undefined);
    await client.unary(TasksService.start, { containerId: id, execId: '' }, signal);
    options.onStage?.('started');
    return {
      id,
      pid: created.pid,
      stdout: stdout.stream,
      stderr: stderr.stream,
      exited,
      kill: async (number, killSignal) => {
        await ignoreMissing(client.unary(TasksService.kill, killRequest(id, number), killSignal));
      },
      remove: removeAll,
    };
  } catch (error) {
    await removeAll(AbortSignal.timeout(10_000)).catch(() => undefined);
    throw error;
  }
}

function killRequest(
  containerId: string,
  signalNumber: number,
): Parameters<typeof TasksService.kill.requestSerialize>[0] {
  return { containerId, execId: '', signal: signalNumber, all: false };
}

async function closeFifo(fifo: Fifo): Promise<void> {
  fifo.finish();
  if (!fifo.stream.closed && !fifo.stream.readableFlowing) fifo.stream.destroy();
}

async function ignoreMissing(work: Promise<unknown>): Promise<void> {
  try {
    await work;
  } catch (error) {
    const gone =
      error instanceof ContainerdError && (error.code === 'not-found' || error.code === 'failed-precondition');
    if (!gone) throw error;
  }
}
