import { z } from 'zod';
import { isDigest, type Digest } from '#shared/digest/digest.ts';

/** Of the messages between nodes and distributors. Both sides refuse what is not of their version. */
export const DISTRIBUTION_VERSION = 3;

export const DISTRIBUTION_LIMITS = {
  /** Of a layer that is shared: with spans of 512 KiB that is 256 GiB. */
  spans: 512 * 1024,
  /** Spans named one by one in a message. */
  listed: 4096,
  /** Spans located with one request. */
  located: 64,
  /** Nodes that one does not want to be sent to, of each kind. */
  avoided: 16,
  /** Nodes answered for a span. */
  holders: 4,
  neighbours: 64,
  /** Of those that a node has got most from. */
  feeds: 4,
} as const;

export const SUBJECTS = {
  hello: 'kindling.distributor.hello',
  join: 'kindling.distributor.join',
  locate: 'kindling.distributor.locate',
  view: 'kindling.distributor.view',
  update: 'kindling.distributor.update',
  /** To all nodes: what the directory knew is lost, say it again. */
  forgotten: 'kindling.nodes.forgotten',
  lease: (node: string) => `kindling.node.${node}.lease`,
} as const;

/** The queue group of the distributor's replicas. */
export const DISTRIBUTOR_QUEUE = 'distributor';

const version = z.literal(DISTRIBUTION_VERSION);
const digest = z.custom<Digest>(isDigest, 'a sha256 digest');
export const nodeId = z.string().regex(/^[A-Za-z0-9_-]{1,64}$/, 'letters, digits, - and _, at most 64');
const span = z
  .int()
  .min(0)
  .max(DISTRIBUTION_LIMITS.spans - 1);
const spanCount = z.int().min(0).max(DISTRIBUTION_LIMITS.spans);
const spanList = z.array(span).max(DISTRIBUTION_LIMITS.listed);
const bitmap = z.string().max(Math.ceil(DISTRIBUTION_LIMITS.spans / 6) + 4);
const epoch = z.string().max(64);

/** What others must know of a node to reach it. */
export const nodeRecord = z.strictObject({
  node: nodeId,
  /** IP address or name, without port. */
  host: z.string().regex(/^[\w.:-]{1,253}$/, 'an address'),
  port: z.int().min(1).max(65_535),
  zone: z.string().max(64),
  tls: z.boolean(),
});
export type NodeRecord = z.infer<typeof nodeRecord>;

const byteCount = z.int().min(0);
/** What a node has fetched and given since its start. Payload, but from the registry: as it came. */
export const nodeFigures = z.strictObject({
  registryBytes: byteCount,
  peerBytes: byteCount,
  givenBytes: byteCount,
  /** From whom most has come, most first. */
  feeds: z.array(z.strictObject({ node: nodeId, bytes: byteCount })).max(DISTRIBUTION_LIMITS.feeds),
});
export type NodeFigures = z.infer<typeof nodeFigures>;

/** First of all, and every few seconds: the node is there. */
export const helloRequest = z.strictObject({ version, record: nodeRecord, figures: nodeFigures });
export const helloReply = z.object({
  version,
  /** Another one than before: the directory has been emptied in between. */
  epoch,
  /** Ed25519, SPKI in base64: capabilities are signed with its other half. */
  publicKey: z.string().max(256),
  /** Say hello again after this. */
  renewMs: z.int().min(100).max(600_000),
});
export type HelloReply = z.infer<typeof helloReply>;

const wanting = {
  /** Spans that the node wants and has not got, all of them. */
  wants: bitmap.optional(),
  /** It would read from the registry now. */
  waiting: z.strictObject({ load: z.int().min(0).max(1000), room: z.int().min(0).max(10_000) }).optional(),
  /** Spans that it is reading from the registry. */
  fetching: spanList.optional(),
};

/** A node begins to fetch a layer together with others. */
export const joinRequest = z.strictObject({
  version,
  record: nodeRecord,
  layer: digest,
  spanCount,
  have: bitmap,
  ...wanting,
  /** Where it pulls the layer from and with which Authorization, so that nobody gets from peers what they could not pull. */
  repository: z.string().max(512),
  authorization: z.string().max(16_384).optional(),
});
export type JoinRequest = z.infer<typeof joinRequest>;
export const joinReply = z.discriminatedUnion('outcome', [
  z.object({
    outcome: z.literal('joined'),
    epoch,
    capability: z.string().max(4096),
    expiresInMs: z.int().min(0),
    /** To be shown with reports of peers that sent wrong bytes, and to nobody else. */
    reporter: z.string().max(4096),
    /** Nodes that want or have the layer, this one included. */
    members: z.int().min(1),
    neighbours: z.array(nodeRecord).max(DISTRIBUTION_LIMITS.neighbours),
  }),
  z.object({ outcome: z.literal('refused'), reason: z.string().max(1024) }),
]);
export type JoinReply = z.infer<typeof joinReply>;

/** Where spans are that no neighbour has; what no other node has or fetches is leased to the asker. */
export const locateRequest = z.strictObject({
  version,
  node: nodeId,
  layer: digest,
  spans: z.array(span).min(1).max(DISTRIBUTION_LIMITS.located),
  /** Neither from these nor with them: the asker cannot reach them, or believes them nothing. */
  without: z.array(nodeId).max(DISTRIBUTION_LIMITS.avoided),
  /** Not from what these have: they are too slow for the asker. */
  slow: z.array(nodeId).max(DISTRIBUTION_LIMITS.avoided),
});
export type LocateRequest = z.infer<typeof locateRequest>;
export const locateReply = z.object({
  leased: z.array(span).max(DISTRIBUTION_LIMITS.located),
  elsewhere: z
    .array(z.object({ span, from: z.array(nodeRecord).max(DISTRIBUTION_LIMITS.holders) }))
    .max(DISTRIBUTION_LIMITS.located),
});
export type LocateReply = z.infer<typeof locateReply>;

/** What has changed on a node for one layer, many spans at a time. Sent without an answer. */
export const updateMessage = z.discriminatedUnion('kind', [
  z.strictObject({
    kind: z.literal('changed'),
    version,
    node: nodeId,
    layer: digest,
    spanCount,
    gained: spanList,
    /** Of `gained`: came from the registry. */
    read: spanList.optional(),
    /** Of leases: not wanted, or failed. */
    released: spanList.optional(),
    ...wanting,
  }),
  /** All of it: at a start, and after `forgotten`. */
  z.strictObject({ kind: z.literal('holds'), version, node: nodeId, layer: digest, spanCount, have: bitmap }),
  z.strictObject({ kind: z.literal('left'), version, node: nodeId, layer: digest }),
  /** A peer has sent wrong bytes of the layer; `reporter` is what joining it has given to the sender. */
  z.strictObject({
    kind: z.literal('bad'),
    version,
    node: nodeId,
    layer: digest,
    suspect: nodeId,
    reporter: z.string().max(4096),
  }),
  /** The node shuts down. */
  z.strictObject({ kind: z.literal('gone'), version, node: nodeId }),
]);
export type UpdateMessage = z.infer<typeof updateMessage>;

/** To one node: read these from the registry. */
export const leaseMessage = z.strictObject({ version, layer: digest, spans: spanList });

export const viewRequest = z.strictObject({ version });
export const viewReply = z.object({
  epoch,
  /** Whose layers are shared, as KINDLING_DISTRIBUTOR_REGISTRIES says; none = sharing is off. */
  registries: z.array(z.string()).max(1_000),
  /** All of them, `nodes` has only the first so many. */
  nodeCount: z.int().min(0),
  nodes: z
    .array(
      z.object({
        record: nodeRecord,
        figures: nodeFigures.optional(),
        /** Several others have reported that it sends wrong bytes. */
        suspected: z.boolean(),
      }),
    )
    .max(20_000),
  layers: z
    .array(
      z.object({
        layer: digest,
        spanCount,
        members: z.int(),
        /** Spans that at least one node has. */
        held: z.int(),
        /** Sum of spans over nodes. */
        copies: z.int(),
        /** Spans read from the registry, each as often as it was; and how many different ones. */
        reads: z.int(),
        readSpans: z.int(),
        leases: z.int(),
        unread: z.int(),
      }),
    )
    .max(10_000),
});
export type ViewReply = z.infer<typeof viewReply>;

export class MessageError extends Error {
  override readonly name = 'MessageError';
  readonly code = 'malformed';
}

/** @throws MessageError when the bytes are no such message, or one of another version. */
export function decodeMessage<T>(schema: z.ZodType<T>, bytes: Uint8Array, what: string): T {
  let json: unknown;
  try {
    json = JSON.parse(Buffer.from(bytes).toString('utf8'));
  } catch (cause) {
    throw new MessageError(`Cannot read ${what}: it is not JSON`, { cause });
  }
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw new MessageError(`Cannot read ${what}: ${issue?.path.join('.') ?? ''}: ${issue?.message ?? 'malformed'}`);
}

export function encodeMessage(message: object): Uint8Array {
  return Buffer.from(JSON.stringify(message));
}
