import { setTimeout as sleep } from 'node:timers/promises';
import type { Recipe } from '#test/images/recipe.ts';
import type { TestContainerd } from './containerd.ts';

/** As HelloBench polls a server. */
const HTTP_POLL_MS = 10;
const READY_TIMEOUT_MS = 300_000;

export interface Start {
  /** From `ctr run` to the image's own sign that it is ready. */
  readonly readyMs: number;
  readonly output: string;
}

/** Starts a container of a test image, waits until it is ready and ends it. @throws Error when it does the wrong thing */
export async function startUntilReady(
  containerd: TestContainerd,
  reference: string,
  recipe: Recipe,
  snapshotter: string,
  signal: AbortSignal,
): Promise<Start> {
  const bounded = AbortSignal.any([signal, AbortSignal.timeout(READY_TIMEOUT_MS)]);
  const { ready } = recipe;
  if (ready.kind === 'exit') {
    const { code, output, ms } = await containerd.run(reference, { snapshotter }, bounded);
    if (code !== 0 || !output.includes(ready.output)) {
      throw new Error(`${recipe.name} ended with ${code} and wrote ${JSON.stringify(output.slice(0, 2_000))}`);
    }
    return { readyMs: ms, output };
  }
  const started = performance.now();
  await using container = await containerd.start(
    reference,
    { snapshotter, hostNetwork: ready.kind === 'http' },
    bounded,
  );
  if (ready.kind === 'log') {
    await container.untilOutput(ready.line, bounded);
  } else {
    for (;;) {
      if (!container.running) throw new Error(`${recipe.name} ended before it answered: ${container.output}`);
      if ((await answer(ready.port)) === 'hello\n') break;
      await sleep(HTTP_POLL_MS, undefined, { signal: bounded });
    }
  }
  return { readyMs: performance.now() - started, output: container.output };
}

async function answer(port: number): Promise<string | undefined> {
  try {
    const response = await fetch(`http://127.0.0.1:${port}/`, { signal: AbortSignal.timeout(30_000) });
    return await response.text();
  } catch {
    return undefined; // not listening yet
  }
}
