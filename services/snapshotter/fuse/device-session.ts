import { read as readCallback, write as writeCallback, writev as writevCallback, writevSync, writeSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import type { FuseEvents, FuseSession } from './fuse-session.ts';
import type { LayerFile, LayerFiles } from './layer-files.ts';
import {
  attributesReply,
  directoryReply,
  entryReply,
  ERRNO,
  initReply,
  INIT_FLAG2,
  invalidateEntryNotice,
  invalidateInodeNotice,
  OPCODE,
  openReply,
  OUT_HEADER_BYTES,
  readHeader,
  readInit,
  readInterrupt,
  readName,
  readRead,
  reply,
  replyHeader,
  resendNotice,
  ROOT_INODE,
  statfsReply,
  type Attributes,
  type RequestHeader,
} from './fuse-protocol.ts';
import { ReplyBuffers } from './reply-buffers.ts';

export interface DeviceSessionOptions {
  /** `/dev/fuse`, mounted on `directory`. Stays open: it belongs to whoever handed it to this process. */
  readonly fd: number;
  readonly directory: string;
  readonly files: LayerFiles;
  readonly events: FuseEvents;
  /** Reads of requests that wait in libuv's pool; by default half of the pool, at most 6. */
  readonly outstanding?: number;
}

/** The largest request we take is a forget of many inodes; the kernel fits those to the buffer. */
const REQUEST_BYTES = 16 * 1024;
/** Up to here a reply is written at once (a copy of some microseconds); above, in libuv's pool. */
const DIRECT_REPLY_BYTES = 256 * 1024;

/**
 * Serves the flat folder of layer images on `/dev/fuse`. No state is kept per open file or lookup: inode numbers are those of
 * `LayerFiles`, so an agent that takes the descriptor over goes on where the earlier one was killed, and asks the kernel
 * for the requests that were never answered.
 */
export function openDeviceSession(options: DeviceSessionOptions): FuseSession {
  const { fd, directory, files, events } = options;
  const pool = Number(process.env['UV_THREADPOOL_SIZE'] ?? 4);
  const outstanding = options.outstanding ?? Math.min(6, Math.max(1, Math.floor(pool / 2)));
  const stats = { requests: 0, reads: 0, bytes: 0, errors: 0, waiting: 0 };
  const unknown = new Set<bigint>();
  const buffers = new ReplyBuffers();
  const waiting = new Map<bigint, { readonly pid: number; readonly end: AbortController }>();
  const closed = Promise.withResolvers<void>();
  let state: 'open' | 'closing' | 'closed' = 'open';
  let readers = outstanding;

  const send = (message: Buffer): void => {
    try {
      writeSync(fd, message);
    } catch (error) {
      replyFailed(error);
    }
  };

  /** ENOENT: the request is gone (its process was killed, or another agent answered it). */
  const replyFailed = (error: unknown): void => {
    if (errnoOf(error) !== 'ENOENT') stats.errors++;
  };

  /** Calls `done` when the bytes are with the kernel. */
  const sendRead = (request: Buffer, data: Uint8Array, done: () => void): void => {
    const header = Buffer.allocUnsafe(OUT_HEADER_BYTES);
    replyHeader(header, request, 0, data.length);
    stats.bytes += data.length;
    if (data.length > DIRECT_REPLY_BYTES) {
      writevCallback(fd, [header, data], null, (error) => {
        if (error) replyFailed(error);
        done();
      });
      return;
    }
    try {
      writevSync(fd, [header, data]);
    } catch (error) {
      replyFailed(error);
    }
    done();
  };

  const fail = (request: Buffer, error: number): void => {
    stats.errors++;
    send(reply(request, error));
  };

  const attributesOf = (inode: bigint): Attributes | undefined => {
    if (inode === ROOT_INODE) return { inode, sizeBytes: 4096, folder: true };
    const file = files.byInode(inode);
    return file && { inode, sizeBytes: file.sizeBytes, folder: false };
  };

  const lost = (request: Buffer, inode: bigint): void => {
    if (!unknown.has(inode)) {
      unknown.add(inode);
      events.unknownFile(inode);
    }
    fail(request, ERRNO.EIO);
  };

  const read = (request: Buffer, header: RequestHeader): void => {
    const wanted = readRead(request);
    if (wanted === undefined) return fail(request, ERRNO.EINVAL);
    if (header.nodeid === ROOT_INODE) return fail(request, ERRNO.EISDIR);
    const file = files.byInode(header.nodeid);
    if (file === undefined) return lost(request, header.nodeid);
    const length = Math.min(wanted.size, Math.max(0, file.sizeBytes - wanted.offset));
    stats.reads++;
    if (length === 0) return send(reply(request, 0));
    void serve(request, header.pid, file, wanted.offset, length);
  };

  /** Never rejects: every way out answers the request. */
  const serve = async (request: Buffer, pid: number, file: LayerFile, offset: number, length: number) => {
    const unique = BigInt.asUintN(63, request.readBigUInt64LE(8));
    const end = new AbortController();
    waiting.set(unique, { pid, end });
    try {
      const buffer = buffers.take(length);
      const data = await files.read(file, offset, length, end.signal, buffer);
      if (data.length > length) throw new RangeError(`${data.length} bytes in answer to a read of ${length}`);
      // After an error it is not given back: a read of the disk may still write to it.
      sendRead(request, data, () => buffers.give(buffer));
    } catch (error) {
      // Left unanswered for the agent that comes next.
      if (state !== 'open') return;
      if (end.signal.aborted) return send(reply(request, ERRNO.EINTR));
      events.readFailed(file, offset, length, error);
      fail(request, ERRNO.EIO);
    } finally {
      waiting.delete(unique);
    }
  };

  /**
   * The kernel says INTERRUPT for every signal; most programs only get a timer or the like and want their bytes (an EINTR for
   * a page fault becomes SIGBUS). Only for a process that has been killed nobody waits any more.
   */
  const interrupt = async (unique: bigint): Promise<void> => {
    const read = waiting.get(unique);
    if (read === undefined || read.pid === 0) return;
    if (await isKilled(read.pid)) waiting.get(unique)?.end.abort();
  };

  const readFolder = (request: Buffer): void => {
    const wanted = readRead(request);
    if (wanted === undefined) return fail(request, ERRNO.EINVAL);
    const dots = ['.', '..'].map((name) => ({ name, inode: ROOT_INODE, folder: true }));
    const entries = files.list().map(({ name, inode }) => ({ name, inode, folder: false }));
    send(directoryReply(request, [...dots, ...entries], wanted.offset, wanted.size));
  };

  const lookup = (request: Buffer, header: RequestHeader): void => {
    const name = readName(request);
    if (name === undefined) return fail(request, ERRNO.EINVAL);
    if (header.nodeid !== ROOT_INODE) return fail(request, ERRNO.ENOTDIR);
    const file = files.byName(name);
    // Not `fail`: asking for what is not there is no error of ours. Names that are not there are not remembered.
    if (file === undefined) return send(reply(request, ERRNO.ENOENT));
    send(entryReply(request, { inode: file.inode, sizeBytes: file.sizeBytes, folder: false }));
  };

  const open = (request: Buffer, header: RequestHeader): void => {
    if (request.length < 48) return fail(request, ERRNO.EINVAL);
    // The access mode, O_ACCMODE: anything but O_RDONLY.
    if ((request.readUInt32LE(40) & 3) !== 0) return send(reply(request, ERRNO.EROFS));
    if (files.byInode(header.nodeid) === undefined) return send(reply(request, ERRNO.ENOENT));
    send(openReply(request, false));
  };

  const handle = (request: Buffer): void => {
    stats.requests++;
    const header = readHeader(request);
    if (header === undefined) return request.length >= 16 ? fail(request, ERRNO.EINVAL) : undefined;
    switch (header.opcode) {
      case OPCODE.read:
        return read(request, header);
      case OPCODE.lookup:
        return lookup(request, header);
      case OPCODE.getattr: {
        const attributes = attributesOf(header.nodeid);
        return attributes ? send(attributesReply(request, attributes)) : lost(request, header.nodeid);
      }
      case OPCODE.open:
        return open(request, header);
      case OPCODE.opendir:
        return header.nodeid === ROOT_INODE ? send(openReply(request, true)) : fail(request, ERRNO.ENOTDIR);
      case OPCODE.readdir:
        return header.nodeid === ROOT_INODE ? readFolder(request) : fail(request, ERRNO.ENOTDIR);
      case OPCODE.statfs: {
        const space = events.diskSpace();
        return send(statfsReply(request, space.totalBytes, space.freeBytes, files.list().length));
      }
      case OPCODE.release:
      case OPCODE.releasedir:
      case OPCODE.flush:
      case OPCODE.access:
      case OPCODE.destroy:
        return send(reply(request, 0));
      case OPCODE.forget:
      case OPCODE.batchForget:
        return; // No reply is due, and lookups are not counted.
      case OPCODE.interrupt: {
        const unique = readInterrupt(request);
        if (unique !== undefined) void interrupt(unique);
        return; // No reply is due.
      }
      case OPCODE.init: {
        const init = readInit(request);
        if (init === undefined || init.major < 7) return fail(request, ERRNO.EINVAL);
        resendable = (init.flags2 & INIT_FLAG2.hasResend) !== 0;
        return send(initReply(request, init));
      }
      default:
        return send(reply(request, ERRNO.ENOSYS));
    }
  };
  let resendable = true;

  const ended = (): void => {
    if (--readers > 0) return;
    state = 'closed';
    for (const { end } of waiting.values()) end.abort();
    closed.resolve();
  };

  /** One of the outstanding reads: waits for a request, handles it, waits for the next. */
  const listen = (): void => {
    const buffer = Buffer.allocUnsafeSlow(REQUEST_BYTES);
    const next = (): void => {
      if (state !== 'open') return ended();
      readCallback(fd, buffer, 0, buffer.length, null, (error, bytes) => {
        if (error) {
          // ENOENT: the request was taken back while it was read. EINTR, EAGAIN: nothing happened.
          if (error.code === 'ENOENT' || error.code === 'EINTR' || error.code === 'EAGAIN') return next();
          return ended();
        }
        // A read outlives this turn, so its header is kept; the buffer is for the next request.
        const request = Buffer.from(buffer.subarray(0, bytes));
        next();
        if (state === 'open') handle(request);
      });
    };
    next();
  };

  for (let index = 0; index < outstanding; index++) listen();
  // What an earlier agent read and did not answer. Nothing to do on the first start, EINVAL on kernels that cannot.
  writeCallback(fd, resendNotice(), (error) => {
    if (error && resendable && errnoOf(error) !== 'EPERM') stats.errors++;
  });

  return {
    transport: 'device',
    directory,
    closed: closed.promise,
    stats: () => ({ ...stats, waiting: waiting.size }),
    async invalidate(file) {
      unknown.delete(file.inode);
      // In the pool: the kernel waits for reads of the inode that are under way. ENOENT: it knows none of it.
      for (const message of [invalidateEntryNotice(ROOT_INODE, file.name), invalidateInodeNotice(file.inode)]) {
        await new Promise<void>((resolve) => writeCallback(fd, message, () => resolve()));
      }
    },
    async close() {
      if (state === 'open') state = 'closing';
      for (const { end } of waiting.values()) end.abort();
      closed.resolve();
    },
  };
}

/** Has the process been killed, so that it only waits for its read to end? */
async function isKilled(pid: number): Promise<boolean> {
  let status: string;
  try {
    status = await readFile(`/proc/${pid}/status`, 'utf8');
  } catch {
    return true;
  }
  const SIGKILL = 1n << 8n;
  return [...status.matchAll(/^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)$/gm)].some(
    ([, mask]) => (BigInt(`0x${mask ?? '0'}`) & SIGKILL) !== 0n,
  );
}

function errnoOf(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error ? String(error.code) : undefined;
}
