import { chmod, lstat, mkdir, rename, rm } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { dirname } from 'node:path';
import {
  Server,
  ServerCredentials,
  status as grpcStatus,
  type ServerUnaryCall,
  type sendUnaryData,
} from '@grpc/grpc-js';
import {
  Kind,
  SnapshotsService,
  type Info,
  type ListSnapshotsRequest,
  type ListSnapshotsResponse,
  type SnapshotsServer,
} from '#shared/containerd/gen/snapshots.ts';
import type { Mount } from '#shared/containerd/gen/types/types.ts';
import type { Timestamp } from '#shared/containerd/gen/google/protobuf/timestamp.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import type { SnapshotMount } from './overlay-mounts.ts';
import { GRPC_STATUS, SnapshotError, toSnapshotError } from './snapshot-error.ts';
import type { SnapshotService } from './snapshot-service.ts';
import type { Nanoseconds, Snapshot, SnapshotKind } from './snapshot.ts';

/** Snapshots in one message of a List: a message stays far below gRPC's 4 MiB. */
const LIST_PAGE = 64;
/** containerd's own bound. */
const MAX_MESSAGE_BYTES = 16 * 1024 * 1024;
/** Calls that are under way at shutdown get this long. */
const DRAIN_MS = 5000;

const KINDS: Readonly<Record<SnapshotKind, Kind>> = {
  view: Kind.VIEW,
  active: Kind.ACTIVE,
  committed: Kind.COMMITTED,
};

/** Where connections come from that we did not accept ourselves. */
export interface Connections {
  onConnection(handler: (socket: Socket) => void): void;
}

/** containerd's snapshots API on a unix socket. */
export class SnapshotServer {
  readonly #server: Server;
  /** Socket of our own, to be removed at the end. */
  readonly #socket: { readonly path: string; readonly inode: number } | undefined;

  private constructor(server: Server, socket?: { readonly path: string; readonly inode: number }) {
    this.#server = server;
    this.#socket = socket;
  }

  /** Serves connections that somebody else accepts: the keeper, which outlives us. */
  static accept(service: SnapshotService, connections: Connections, logger: Logger): SnapshotServer {
    const server = newServer(service, logger);
    const injector = server.createConnectionInjector(ServerCredentials.createInsecure());
    connections.onConnection((socket) => injector.injectConnection(socket));
    return new SnapshotServer(server);
  }

  /**
   * Serves on `address`. The socket takes the place of one that is there in one step: containerd answers "unavailable"
   * for seconds after it once found none.
   */
  static async listen(service: SnapshotService, address: string, logger: Logger): Promise<SnapshotServer> {
    const server = newServer(service, logger);
    await mkdir(dirname(address), { recursive: true });
    const fresh = `${address}.${process.pid}`;
    await rm(fresh, { force: true });
    await new Promise<void>((resolve, reject) => {
      server.bindAsync(`unix:${fresh}`, ServerCredentials.createInsecure(), (error) => {
        if (error === null) resolve();
        else reject(new Error(`Cannot serve snapshots on ${address}: ${error.message}`, { cause: error }));
      });
    });
    // Who may write to the socket may do what root may.
    await chmod(fresh, 0o600);
    const { ino } = await lstat(fresh);
    await rename(fresh, address);
    return new SnapshotServer(server, { path: address, inode: ino });
  }

  /** Lets running calls end; the socket goes away unless another server has taken its place. */
  async close(): Promise<void> {
    const timer = setTimeout(() => this.#server.forceShutdown(), DRAIN_MS);
    await new Promise<void>((resolve) => this.#server.tryShutdown(() => resolve()));
    clearTimeout(timer);
    if (this.#socket === undefined) return;
    const { path, inode } = this.#socket;
    const here = await lstat(path).catch(() => undefined);
    if (here?.ino === inode) await rm(path, { force: true });
  }
}

function newServer(service: SnapshotService, logger: Logger): Server {
  const server = new Server({
    'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
    'grpc.max_send_message_length': MAX_MESSAGE_BYTES,
  });
  server.addService(SnapshotsService, handlers(service, logger));
  return server;
}

function handlers(service: SnapshotService, logger: Logger): SnapshotsServer {
  /** One unary call: cancelled with its caller, errors by the table. */
  const unary =
    <Request, Response>(name: string, work: (request: Request, signal: AbortSignal) => Response | Promise<Response>) =>
    (call: ServerUnaryCall<Request, Response>, callback: sendUnaryData<Response>): void => {
      const cancel = new AbortController();
      call.on('cancelled', () => cancel.abort());
      // The async function makes a thrown error a rejection.
      (async () => await work(call.request, cancel.signal))().then(
        (response) => callback(null, response),
        (error: unknown) => callback(toStatus(error, name, logger)),
      );
    };
  return {
    prepare: unary('Prepare', async (request, signal) => ({
      mounts: toMounts(await service.prepare(request.key, request.parent, request.labels, signal)),
    })),
    view: unary('View', async (request, signal) => ({
      mounts: toMounts(await service.view(request.key, request.parent, request.labels, signal)),
    })),
    mounts: unary('Mounts', async (request, signal) => ({
      mounts: toMounts(await service.mounts(request.key, signal)),
    })),
    commit: unary('Commit', async (request, signal) => {
      await service.commit(request.name, request.key, request.labels, request.parent, signal);
      return {};
    }),
    remove: unary('Remove', (request) => {
      service.remove(request.key);
      return {};
    }),
    stat: unary('Stat', (request) => ({ info: toInfo(service.stat(request.key)) })),
    update: unary('Update', (request) => {
      const info = request.info;
      if (info === undefined) throw new SnapshotError('invalid', 'Cannot update a snapshot: the request names none');
      return { info: toInfo(service.update(info.name, info.labels, request.updateMask ?? [])) };
    }),
    usage: unary('Usage', async (request, signal) => {
      const usage = await service.usage(request.key, signal);
      return { size: usage.sizeBytes, inodes: usage.inodes };
    }),
    cleanup: unary('Cleanup', async (_, signal) => {
      await service.cleanup(signal);
      return {};
    }),
    list: (call) => {
      sendList(service, call).catch((error: unknown) => call.emit('error', toStatus(error, 'List', logger)));
    },
  };
}

async function sendList(
  service: SnapshotService,
  call: Parameters<SnapshotsServer['list']>[0] & {
    readonly request: ListSnapshotsRequest;
    write(message: ListSnapshotsResponse): boolean;
  },
): Promise<void> {
  let page: Info[] = [];
  const flush = async (): Promise<void> => {
    if (page.length === 0) return;
    const wasTaken = call.write({ info: page });
    page = [];
    if (!wasTaken && !call.cancelled) {
      await new Promise<void>((resolve) => {
        call.once('drain', resolve);
        call.once('cancelled', resolve);
      });
    }
  };
  for (const snapshot of service.list(call.request.filters)) {
    page.push(toInfo(snapshot));
    if (page.length === LIST_PAGE) await flush();
    if (call.cancelled) return;
  }
  await flush();
  call.end();
}

function toStatus(
  cause: unknown,
  method: string,
  logger: Logger,
): { code: grpcStatus; message: string; details: string } {
  const error = toSnapshotError(cause);
  const message = error instanceof Error ? error.message : String(error);
  const code = error instanceof SnapshotError ? GRPC_STATUS[error.code] : grpcStatus.INTERNAL;
  if (code === grpcStatus.INTERNAL || code === grpcStatus.RESOURCE_EXHAUSTED) {
    logger.error({ err: error, method }, 'snapshot call failed');
  }
  return { code, message, details: message };
}

function toMounts(mounts: readonly SnapshotMount[]): Mount[] {
  return mounts.map(({ type, source, options }) => ({ type, source, target: '', options: [...options] }));
}

function toInfo(snapshot: Snapshot): Info {
  return {
    name: snapshot.name,
    parent: snapshot.parent,
    kind: KINDS[snapshot.kind],
    createdAt: toTimestamp(snapshot.createdAt),
    updatedAt: toTimestamp(snapshot.updatedAt),
    labels: { ...snapshot.labels },
  };
}

function toTimestamp(time: Nanoseconds): Timestamp {
  return { seconds: Number(time / 1_000_000_000n), nanos: Number(time % 1_000_000_000n) };
}
