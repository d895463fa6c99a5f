import { closeSync, constants, openSync } from 'node:fs';
import { Socket } from 'node:net';
import koffi from 'koffi';

/**
 * The reading end of a named pipe that a runtime's shim writes to.
 *
 * We hold a writing end of our own, so that the pipe does not end before the shim has opened it; `finish()` closes that, and
 * the stream then ends after its last byte.
 */
export interface Fifo {
  readonly path: string;
  readonly stream: Socket;
  finish(): void;
}

let mkfifo: ((path: string, mode: number) => number) | undefined;

/** @throws Error when the pipe cannot be made. */
export function openFifo(path: string): Fifo {
  mkfifo ??= koffi.load(null).func('int mkfifo(const char *path, uint mode)') as (path: string, mode: number) => number;
  if (mkfifo(path, 0o600) !== 0)
    throw new Error(`Cannot make the named pipe ${path}: mkfifo failed (errno ${koffi.errno()})`);
  // Both opens return at once: the reader because of O_NONBLOCK, the writer because there is a reader.
  const reader = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  const writer = openSync(path, constants.O_WRONLY | constants.O_NONBLOCK);
  // The socket owns and closes the reader from here on.
  const stream = new Socket({ fd: reader, readable: true, writable: false });
  let finished = false;
  return {
    path,
    stream,
    finish: () => {
      if (finished) return;
      finished = true;
      closeSync(writer);
    },
  };
}
