import { createHash } from 'node:crypto';
import { z } from 'zod';
import { isDigest, type Digest } from '#shared/digest/digest.ts';
import type { OutgoingEvent } from '#shared/bus/bus.ts';
import { CloudEventError, parseStructured, serialise } from './cloud-event.ts';

/** Names of images as people write them; who uses one parses it with `parseReference`. */
const reference = z.string().min(1).max(1024);
const digest = z.custom<Digest>(isDigest, 'not "sha256:" and 64 hex digits');

/** Someone pushed an image. `digest` is what the sender saw; tags are resolved anew by whoever acts on the event. */
const imagePushed = z.object({ image: reference, digest: digest.optional() });

/** A platform deployed a function (or an operator an image): nodes get it even where it has no tag. */
const functionDeployed = z.object({ function: z.string().min(1).max(256), image: reference });

const indexedLayer = z.object({
  layer: digest,
  sizeBytes: z.int().nonnegative(),
  /** `indexed`: its index is in the cluster. `not-lazy`: it has to be pulled whole, `reason` says why. */
  state: z.enum(['indexed', 'not-lazy']),
  format: z.string().max(32).optional(),
  reason: z.string().max(600).optional(),
});

/** All layers of an image have an index, or a reason why not; nodes may pull it now. */
const imageIndexed = z.object({
  /** With the tag it was pushed or deployed by, where it has one. */
  image: reference,
  /** What it was resolved to: of the index, where it has several platforms. */
  digest,
  /** `deploy`: nodes pull it whatever its name. */
  cause: z.enum(['push', 'deploy']),
  layers: z.array(indexedLayer).max(1024),
});

const SCHEMAS = {
  'image.pushed': imagePushed,
  'function.deployed': functionDeployed,
  'image.indexed': imageIndexed,
} as const;

export type EventType = keyof typeof SCHEMAS;
export type EventData<T extends EventType> = z.infer<(typeof SCHEMAS)[T]>;
export type ImageIndexed = EventData<'image.indexed'>;
export type IndexedLayer = ImageIndexed['layers'][number];

export interface KindlingEvent<T extends EventType = EventType> {
  readonly type: T;
  readonly id: string;
  readonly source: string;
  readonly data: EventData<T>;
}

export function isEventType(type: string): type is EventType {
  return Object.hasOwn(SCHEMAS, type);
}

/** Where events of a type are on the bus. */
export function subjectOf(type: EventType): string {
  return `kindling.events.${type}`;
}

/** @throws CloudEventError when the data is not what the type says */
export function checkData<T extends EventType>(type: T, data: unknown): EventData<T> {
  const parsed = SCHEMAS[type].safeParse(data);
  if (parsed.success) return parsed.data as EventData<T>;
  const problems = parsed.error.issues.slice(0, 5).map((issue) => `data.${issue.path.join('.')}: ${issue.message}`);
  throw new CloudEventError('malformed', `Cannot read the data of ${type}: ${problems.join('; ')}`);
}

/** As it goes to the bus. Events of the same source and id are one event. */
export function toBus(event: KindlingEvent, now: Date): OutgoingEvent {
  const cloudEvent = {
    specversion: '1.0',
    id: event.id,
    source: event.source,
    type: event.type,
    time: now.toISOString(),
    datacontenttype: 'application/json',
    data: event.data,
  };
  return { subject: subjectOf(event.type), id: dedupeId(event.source, event.id), payload: serialise(cloudEvent) };
}

/** @throws CloudEventError */
export function fromBus<T extends EventType>(type: T, payload: Uint8Array): KindlingEvent<T> {
  const event = parseStructured(payload, `an event ${type} of the bus`);
  if (event.type !== type) {
    throw new CloudEventError(
      'malformed',
      `Cannot read an event of the bus: its type is ${JSON.stringify(event.type)}, not ${type}`,
    );
  }
  return { type, id: event.id, source: event.source, data: checkData(type, event.data) };
}

/** Source and id may hold anything; a header of the bus may not. */
export function dedupeId(source: string, id: string): string {
  return createHash('sha256')
    .update(JSON.stringify([source, id]))
    .digest('base64url');
}
