import { Worker } from 'node:worker_threads';
import type { CoverResult, CoverTask } from './cover-worker.ts';

/** Fills `task.cover` in a worker thread (see CoverTask). Aborting stops the wait; a half-filled folder stays. */
export async function buildCover(task: CoverTask, signal: AbortSignal): Promise<CoverResult> {
  signal.throwIfAborted();
  const worker = new Worker(new URL('./cover-worker.ts', import.meta.url), { workerData: task, name: 'cover' });
  try {
    return await new Promise<CoverResult>((resolve, reject) => {
      worker.once('message', (result: CoverResult) => resolve(result));
      worker.once('error', (error) => resolve({ kind: 'failed', message: error.message }));
      worker.once('exit', (code) => reject(new Error(`Cannot build a cover: its worker ended with code ${code}`)));
      signal.addEventListener('abort', () => reject(signal.reason), { once: true });
    });
  } finally {
    // Not awaited: a worker that waits for a file system of ours ends when it answers.
    void worker.terminate();
  }
}
