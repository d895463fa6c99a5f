import { constants, openSync, write } from 'node:fs';

/** Bytes that wait for a log that does not take them; what comes above is dropped and counted. */
const QUEUE_BYTES = 1024 * 1024;
/** How soon a log that was full is tried again. */
const RETRY_MS = 50;

export interface LogRelay {
  /** Never waits and never fails, whatever becomes of the log: a closed pipe, one that nobody reads, a full disk. */
  write(text: string | Buffer): void;
  /** One JSON line of the keeper's own. */
  say(level: 'info' | 'warn' | 'error', message: string, fields?: Readonly<Record<string, unknown>>): void;
}

/** Writes to the process's stderr. The agent's lines pass through it too, so that a stuck log cannot stop the agent. */
export function createLogRelay(): LogRelay {
  const fd = openAgain(2);
  const queue: Buffer[] = [];
  let queued = 0;
  let dropped = 0;
  let busy = false;

  const pump = (): void => {
    const next = queue[0];
    if (busy || next === undefined) return;
    busy = true;
    write(fd, next, (error, written) => {
      busy = false;
      if (error?.code === 'EAGAIN') {
        setTimeout(pump, RETRY_MS).unref();
        return;
      }
      // EPIPE, ENOSPC, EIO: this part is lost, the next one may pass.
      const done = error ? next.length : written;
      queued -= done;
      if (done < next.length) queue[0] = next.subarray(done);
      else queue.shift();
      if (error) dropped += 1;
      pump();
    });
  };
  const relay: LogRelay = {
    write(text) {
      const bytes = typeof text === 'string' ? Buffer.from(text) : text;
      if (queued + bytes.length > QUEUE_BYTES) {
        dropped++;
        return;
      }
      if (dropped > 0) {
        const lost = dropped;
        dropped = 0;
        relay.say('warn', 'Parts of the log were dropped: nobody took them', { parts: lost });
      }
      queue.push(bytes);
      queued += bytes.length;
      pump();
    },
    say(level, message, fields = {}) {
      const severity = { info: 30, warn: 40, error: 50 }[level];
      const line = {
        level: severity,
        time: new Date().toISOString(),
        service: 'keeper',
        pid: process.pid,
        ...fields,
        msg: message,
      };
      relay.write(`${JSON.stringify(line)}\n`);
    },
  };
  return relay;
}

/**
 * Our own open of the same pipe or file, so that not waiting (O_NONBLOCK) is ours alone. Not possible for sockets (journald):
 * writes to those may wait, in libuv's pool.
 */
function openAgain(fd: number): number {
  try {
    return openSync(`/proc/self/fd/${fd}`, constants.O_WRONLY | constants.O_NONBLOCK | constants.O_APPEND);
  } catch {
    return fd;
  }
}
