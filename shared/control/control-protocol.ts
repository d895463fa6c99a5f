import { z } from 'zod';

/**
 * What the agent and the command `kindling` say to each other: HTTP with JSON on a unix socket that only root may use.
 *
 * `GET /v1/status` AgentStatus; `GET /v1/layers` LayerStatus[]; `GET /v1/trace?since=<seq>` Trace;
 * `POST /v1/pull` PullRequest, answered by lines of PullEvent, of which the last is `done` or `failed`;
 * `GET /v1/dead-letters?limit=<n>` DeadLetterView[], `POST /v1/dead-letters` DeadLetterRequest answers `deadLetterReply`;
 * `POST /v1/reload` replaces the agent by the version on disk. Errors are `controlFailure` with a status >= 400.
 */
export const CONTROL_LIMITS = {
  /** Bytes of a request's body. */
  requestBytes: 64 * 1024,
  /** Bytes of an answer's body or line: a node may have thousands of layers. */
  answerBytes: 64 * 1024 * 1024,
} as const;

const count = z.number().nonnegative();
const bySource = z.object({ peer: count, registry: count });

export const layerStatus = z.object({
  layer: z.string(),
  format: z.string(),
  blobSize: count,
  imageSize: count,
  diskBytes: count,
  spans: count,
  residentSpans: count,
  prioritySpans: count,
  /** Spans come only one after the other, as the blob is read from its front (large zstd frames). */
  inOrder: z.boolean(),
  /** The digest of its tar is known, so that no image can pass it off as another layer. */
  tarChecked: z.boolean(),
  complete: z.boolean(),
  mounted: z.enum(['no', 'fuse', 'disk']),
  images: z.array(z.string()),
  bytesBySource: bySource,
  spansBySource: bySource,
  demandSpans: count,
  stalls: count,
  stallMs: count,
  errors: count,
});
export type LayerStatus = z.infer<typeof layerStatus>;

export const agentStatus = z.object({
  version: z.string(),
  pid: count,
  startedAtMs: count,
  ready: z.boolean(),
  rssBytes: count,
  dataDir: z.string(),
  snapshotter: z.string(),
  fuse: z.object({
    transport: z.string(),
    directory: z.string(),
    reads: count,
    bytes: count,
    errors: count,
    waiting: count,
  }),
  layers: z.object({
    total: count,
    mounted: count,
    complete: count,
    diskBytes: count,
    quotaBytes: count,
  }),
  /**
   * Root file systems that read through the agent for as long as they are mounted, since they were mounted before all their layers
   * were complete. `snapshot`: of a container, as containerd names it; `incompleteLayers`: those that still need a source.
   */
  dependents: z.array(
    z.object({ mount: z.string(), snapshot: z.string().optional(), layers: count, incompleteLayers: count }),
  ),
  notLazy: z.array(
    z.object({ layer: z.string(), imageReference: z.string(), reason: z.string(), message: z.string(), atMs: count }),
  ),
});
export type AgentStatus = z.infer<typeof agentStatus>;

const priority = z.enum(['demand', 'prefetch', 'background']);
const source = z.enum(['peer', 'registry']);
const at = { seq: count, atMs: count, layer: z.string() };
export const trace = z.object({
  /** Pass it as `since` to get what happens from now on. */
  seq: count,
  events: z.array(
    z.discriminatedUnion('kind', [
      z.object({ kind: z.literal('fetched'), ...at, span: count, source, priority, bytes: count, waitedMs: count }),
      z.object({ kind: z.literal('stalled'), ...at, first: count, last: count, waitedMs: count }),
      z.object({ kind: z.literal('failed'), ...at, span: count, source, reason: z.string(), final: z.boolean() }),
    ]),
  ),
});
export type Trace = z.infer<typeof trace>;

export const pullRequest = z.strictObject({
  reference: z.string().min(1).max(1024),
  namespace: z.string().max(76).optional(),
  platform: z.string().max(64).optional(),
});
export type PullRequest = z.infer<typeof pullRequest>;

export const pullEvent = z.discriminatedUnion('kind', [
  z.object({
    kind: z.literal('layer'),
    layer: z.string(),
    sizeBytes: count,
    /** `full`: downloaded and unpacked by containerd; the reason says why it is not lazy. */
    state: z.enum(['lazy', 'full', 'present']),
    reason: z.string().optional(),
    elapsedMs: count,
    done: count,
    total: count,
  }),
  z.object({
    kind: z.literal('done'),
    /** Name of containerd's image record. */
    image: z.string(),
    digest: z.string(),
    /** Chain ID of the top layer: the parent of a container's snapshot. */
    chainId: z.string(),
    resolveMs: count,
    elapsedMs: count,
  }),
  z.object({ kind: z.literal('failed'), code: z.string(), message: z.string() }),
]);
export type PullEvent = z.infer<typeof pullEvent>;

export const deadLetterRequest = z.strictObject({ id: z.string().max(64), how: z.enum(['retry', 'drop']) });
export type DeadLetterRequest = z.infer<typeof deadLetterRequest>;
/** `found`: there was such a letter. */
export const deadLetterReply = z.object({ found: z.boolean() });

export const controlFailure = z.object({ code: z.string(), message: z.string() });
