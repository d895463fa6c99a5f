import { join } from 'node:path';
import type { AgentStatus, LayerStatus, PullEvent, PullRequest } from '#shared/control/control-protocol.ts';
import type { EventLog } from '#shared/bus/bus.ts';
import { viewOfDeadLetter } from '#shared/events/dead-letter.ts';
import type { FuseSession } from '../fuse/fuse-session.ts';
import type { LazyPull } from '../images/lazy-pull.ts';
import type { LayerMounts } from '../layers/layer-mounts.ts';
import type { LayerStatistics } from '../layers/layer-statistics.ts';
import type { LayerStore } from '../layers/layer-store.ts';
import { sessionUse } from '../mounts/session-users.ts';
import type { SnapshotService } from '../snapshots/snapshot-service.ts';
import { hostPlatform, parsePlatform } from '#shared/registry/platform.ts';
import type { ControlHandlers } from './control-server.ts';

export interface AgentControlDeps {
  readonly version: string;
  readonly dataDir: string;
  readonly snapshotter: string;
  readonly namespace: string;
  readonly quotaBytes: number;
  readonly fuse: FuseSession;
  readonly store: LayerStore;
  readonly mounts: LayerMounts;
  readonly statistics: LayerStatistics;
  readonly snapshots: SnapshotService;
  /** Pulls into a containerd namespace. */
  readonly pullInto: (namespace: string) => LazyPull;
  readonly ready: () => boolean;
  readonly reload: () => void;
  /** Undefined where the node neither is in a cluster nor takes events itself. */
  readonly events: EventLog | undefined;
}

const MAX_NOT_LAZY = 200;

/** What the control socket tells of the agent's parts. */
export function agentControl(deps: AgentControlDeps): ControlHandlers {
  const { store, mounts, statistics, snapshots, fuse } = deps;
  const startedAtMs = Date.now();

  const dependents = async (): Promise<AgentStatus['dependents']> => {
    const { users } = await sessionUse(fuse.directory);
    const names = new Map(Array.from(snapshots.list([]), ({ id, name }) => [snapshots.folderOf(id), name]));
    const byName = new Map(Array.from(store.layers.values(), (layer) => [join(fuse.directory, layer.name), layer]));
    return users.map(({ mount, images }) => {
      const upper = /(?:^|,)upperdir=([^,]*)/.exec(mount.superOptions)?.[1];
      const snapshot = upper === undefined ? undefined : names.get(upper);
      return {
        mount: mount.target,
        ...(snapshot === undefined ? {} : { snapshot }),
        layers: images.length,
        incompleteLayers: images.filter((image) => byName.get(image)?.complete !== true).length,
      };
    });
  };

  const layerStatuses = (): LayerStatus[] =>
    Array.from(store.layers.values(), (layer) => {
      const { record } = layer;
      const source = mounts.sourceOf(layer.layer);
      const figures = statistics.figures(layer.layer);
      return {
        layer: layer.layer,
        format: record.format,
        blobSize: record.blobSize,
        imageSize: record.imageSize,
        diskBytes: layer.diskBytes,
        spans: record.spanCount,
        residentSpans: layer.residentSpans,
        prioritySpans: record.prioritySpans,
        inOrder: !record.seekable,
        tarChecked: record.diffId !== undefined,
        complete: layer.complete,
        mounted: source === undefined ? 'no' : source.startsWith(`${fuse.directory}/`) ? 'fuse' : 'disk',
        images: record.requests.map(({ imageReference }) => imageReference),
        ...figures,
      };
    });

  const events = (): EventLog => {
    if (deps.events !== undefined) return deps.events;
    throw new Error(
      'This node takes no events: it has neither NATS_URL nor KINDLING_GATEWAY_TOKENS among its settings',
    );
  };

  return {
    status: async () => {
      const { reads, bytes, errors, waiting } = fuse.stats();
      const layers = [...store.layers.values()];
      return {
        version: deps.version,
        pid: process.pid,
        startedAtMs,
        ready: deps.ready(),
        rssBytes: process.memoryUsage.rss(),
        dataDir: deps.dataDir,
        snapshotter: deps.snapshotter,
        fuse: { transport: fuse.transport, directory: fuse.directory, reads, bytes, errors, waiting },
        layers: {
          total: layers.length,
          mounted: mounts.count,
          complete: layers.filter(({ complete }) => complete).length,
          diskBytes: store.diskBytes,
          quotaBytes: deps.quotaBytes,
        },
        dependents: await dependents(),
        notLazy: snapshots
          .notLazy()
          .slice(0, MAX_NOT_LAZY)
          .map(({ layer, imageReference, code, reason, at }) => ({
            layer,
            imageReference,
            reason: code,
            message: reason,
            atMs: Number(at / 1_000_000n),
          })),
      };
    },
    layers: layerStatuses,
    trace: (since) => ({
      seq: statistics.lastSeq,
      events: since === undefined ? [] : [...statistics.trace(since)],
    }),
    pull: (request, signal) => pull(deps.pullInto(request.namespace ?? deps.namespace), request, signal),
    reload: deps.reload,
    deadLetters: async (limit, signal) => (await events().deadLetters(limit, signal)).map(viewOfDeadLetter),
    settleDeadLetter: async ({ id, how }, signal) =>
      await (how === 'retry' ? events().retryDead(id, signal) : events().dropDead(id, signal)),
  };
}

/** The pull's progress as events; the consumer's going away cancels it. */
async function* pull(lazyPull: LazyPull, request: PullRequest, signal: AbortSignal): AsyncGenerator<PullEvent> {
  const queue: PullEvent[] = [];
  let wake: (() => void) | undefined;
  const push = (event: PullEvent) => {
    queue.push(event);
    wake?.();
  };
  const platform = request.platform === undefined ? hostPlatform() : parsePlatform(request.platform);
  let ended = false;
  const running = lazyPull
    .pull(
      request.reference,
      {
        platform,
        onProgress: ({ layer, how, reason, ms, sizeBytes }, done, total) =>
          push({
            kind: 'layer',
            layer,
            sizeBytes,
            state: how,
            ...(reason === undefined ? {} : { reason }),
            elapsedMs: ms,
            done,
            total,
          }),
      },
      signal,
    )
    .then(
      ({ image, manifest, topSnapshot, resolveMs, totalMs }) =>
        push({ kind: 'done', image, digest: manifest, chainId: topSnapshot, resolveMs, elapsedMs: totalMs }),
      (error: unknown) => {
        const known = error instanceof Error;
        const code = known && 'code' in error && typeof error.code === 'string' ? error.code : 'failed';
        push({ kind: 'failed', code, message: known ? error.message : String(error) });
      },
    )
    .finally(() => {
      ended = true;
      wake?.();
    });
  for (;;) {
    const event = queue.shift();
    if (event !== undefined) yield event;
    else if (ended) break;
    else {
      await new Promise<void>((resolve) => {
        wake = resolve;
        if (queue.length > 0 || ended) resolve();
      });
      wake = undefined;
    }
  }
  await running;
}
