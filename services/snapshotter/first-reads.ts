import { openDeviceSession } from './fuse/device-session.ts';
import type { FuseSession } from './fuse/fuse-session.ts';
import { FoundLayers } from './layers/found-layers.ts';
import { WorkerPool } from './layers/worker-pool.ts';
import { SessionEvents } from './session-events.ts';

/** A session that serves already, before the agent is there. */
export interface FirstReads {
  readonly session: FuseSession;
  readonly layers: FoundLayers;
  readonly events: SessionEvents;
  /** One of its threads comes up meanwhile, for those who wait for what is not here. */
  readonly workers: WorkerPool;
  /** When it began to serve, in ms since the start of the process. */
  readonly atMs: number;
}

/**
 * Answers readers from the disk as the first thing of all: they wait since the last agent ended. Keep what this file imports
 * small; each package more is a longer wait for them.
 *
 * @returns undefined where what is on the disk has to be verified first
 */
export async function openFirstReads(
  fuse: { readonly fd: number; readonly directory: string },
  dataDir: string,
  signal: AbortSignal,
): Promise<FirstReads | undefined> {
  const layers = await FoundLayers.find(dataDir, signal);
  if (layers === undefined) return undefined;
  const events = new SessionEvents(dataDir);
  const session = openDeviceSession({ ...fuse, files: layers, events });
  const atMs = performance.now();
  const workers = new WorkerPool({ size: 2 });
  workers.warm(1);
  return { session, layers, events, workers, atMs };
}
