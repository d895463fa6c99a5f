import type { MessagePort } from 'node:worker_threads';
import type { BlobAnswer, BlobMessage } from './blob-thread.ts';

/** What reads a blob in a thread of its own. */
export interface BlobReader<T> {
  push(bytes: Uint8Array): Promise<void>;
  /** The blob has ended. */
  finish(): Promise<T>;
  /** The other side can take more of what `push` makes. */
  more?(): void;
  /** `push` must not wait for `more` any longer. */
  close(): Promise<void>;
}

/** The thread's side of a BlobThread; resolves when it is over. */
export async function serveBlob<T>(port: MessagePort, open: () => BlobReader<T>): Promise<void> {
  const say = (answer: BlobAnswer<T>) => port.postMessage(answer);
  let reader: BlobReader<T> | undefined;
  let turn = Promise.resolve();
  const fail = (error: unknown) => {
    const known = error instanceof Error;
    const code = known && 'code' in error && typeof error.code === 'string' ? error.code : 'failed';
    say({ kind: 'failed', code, message: known ? error.message : String(error) });
    turn = new Promise(() => {});
  };
  let isOver = false;
  const take = async (message: BlobMessage) => {
    // What reads may be closed by now, and its decoder must not be used.
    if (isOver) return;
    if (message.kind === 'bytes') {
      const { byteLength } = message.bytes;
      await reader?.push(message.bytes);
      message.bytes.buffer.transfer(0);
      say({ kind: 'taken', byteLength });
    } else if (message.kind === 'finish' && reader !== undefined) {
      say({ kind: 'answer', answer: await reader.finish() });
    }
  };
  const ended = new Promise<void>((resolve) => {
    port.on('message', (message: BlobMessage) => {
      if (message.kind === 'end') resolve();
      else if (message.kind === 'more') reader?.more?.();
      else turn = turn.then(() => take(message)).catch(fail);
    });
    port.on('close', () => resolve());
  });
  try {
    reader = open();
  } catch (error) {
    fail(error);
  }
  await ended;
  isOver = true;
  await reader?.close();
  port.close();
}
