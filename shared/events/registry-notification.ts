import { z } from 'zod';
import { isDigest, type Digest } from '#shared/digest/digest.ts';
import { CloudEventError } from './cloud-event.ts';

/**
 * What the distribution registry sends to its notification endpoints.
 * https://distribution.github.io/distribution/about/notifications/
 */
const MAX_EVENTS = 1024;
const name = z.string().max(512);

const envelope = z.object({ events: z.array(z.unknown()).max(MAX_EVENTS, `at most ${MAX_EVENTS} events`) });

// Loose: registries add fields, and events that are of no use to us may look as they like.
const push = z.looseObject({
  id: name.min(1),
  action: z.literal('push'),
  target: z.looseObject({
    mediaType: name,
    digest: z.custom<Digest>(isDigest),
    repository: name.min(1),
    tag: name.optional(),
  }),
  request: z.looseObject({ host: name.min(1) }),
});

const MANIFESTS = new Set([
  'application/vnd.oci.image.manifest.v1+json',
  'application/vnd.oci.image.index.v1+json',
  'application/vnd.docker.distribution.manifest.v2+json',
  'application/vnd.docker.distribution.manifest.list.v2+json',
]);

/** Tags under which registries without a referrers API keep referrers: never an image. */
const REFERRERS_TAG = /^sha256-[0-9a-f]{64}$/;

export interface PushNotice {
  /** The registry's own id of the event. */
  readonly id: string;
  /** As whoever pushed addressed the registry. */
  readonly host: string;
  readonly repository: string;
  readonly tag: string | undefined;
  readonly digest: Digest;
}

/**
 * The pushes of manifests among the events of one request; layers, pulls, mounts and deletions are left out. A `url` in them is not
 * read: we never follow it.
 *
 * @throws CloudEventError when the request is not a notification at all
 */
export function parseNotification(body: Uint8Array): readonly PushNotice[] {
  let json: unknown;
  try {
    json = JSON.parse(Buffer.from(body).toString('utf8'));
  } catch (cause) {
    throw new CloudEventError('malformed', 'Cannot read the notification: it is not JSON', { cause });
  }
  const parsed = envelope.safeParse(json);
  if (!parsed.success) {
    throw new CloudEventError(
      'malformed',
      `Cannot read the notification: ${parsed.error.issues[0]?.message ?? 'no "events"'}`,
    );
  }
  return parsed.data.events.flatMap((event): readonly PushNotice[] => {
    const one = push.safeParse(event);
    if (!one.success || !MANIFESTS.has(one.data.target.mediaType)) return [];
    const { id, target, request } = one.data;
    const tag = target.tag === undefined || target.tag === '' ? undefined : target.tag;
    if (tag !== undefined && REFERRERS_TAG.test(tag)) return [];
    return [{ id, host: request.host, repository: target.repository, tag, digest: target.digest }];
  });
}
