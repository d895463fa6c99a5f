import { link, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { dirname } from 'node:path';

/** A socket that nobody answers refuses at once; one whose queue is full is answered by somebody. */
const ANSWER_MS = 1000;
const RANDOM = '/proc/sys/kernel/random/uuid';

/**
 * True for one process at a time, until it ends in whatever way: an abstract socket, which the kernel gives up with it. Any user may
 * bind any such name, so ours is one that only root can read, in a file beside the folder.
 */
export async function lockFolder(folder: string): Promise<boolean> {
  const name = await nameOf(`${folder}.lock`);
  return await new Promise<boolean>((resolve) => {
    const server = createServer((socket) => socket.destroy());
    server.once('error', () => resolve(false));
    server.listen({ path: `\0kindling-keeper:${name}` }, () => resolve(true));
    server.unref();
  });
}

/** Whether a process listens on the socket at `path`. */
export async function isAnswered(path: string): Promise<boolean> {
  return await new Promise<boolean>((resolve) => {
    const socket = connect(path);
    const end = (answered: boolean): void => {
      socket.destroy();
      resolve(answered);
    };
    socket.once('connect', () => end(true));
    socket.once('error', (error) => end('code' in error && error.code === 'EAGAIN'));
    socket.setTimeout(ANSWER_MS, () => end(true));
  });
}

/** What the file says; it is made, whole from the first, by whoever comes first. */
async function nameOf(path: string): Promise<string> {
  try {
    const part = `${path}.${process.pid}`;
    await mkdir(dirname(path), { recursive: true });
    // Not node:crypto, for one name in the life of a node.
    await writeFile(part, (await readFile(RANDOM, 'utf8')).trim(), { mode: 0o600 });
    // It is there already, mostly.
    await link(part, path).catch(() => {});
    await rm(part, { force: true });
    return await readFile(path, 'utf8');
  } catch {
    // A full disk: the name is one that others may guess, which is better than not to start.
    return await readFile(path, 'utf8').catch(() => path);
  }
}
