import { CloudEventError, parseRequest, type CloudEvent, type HeaderMap } from '#shared/events/cloud-event.ts';
import { checkData, isEventType, type KindlingEvent } from '#shared/events/image-events.ts';
import { parseNotification } from '#shared/events/registry-notification.ts';
import type { AllowedRepositories } from '#shared/registry/allowed-repositories.ts';
import { formatReference, ImageReferenceError, parseReference } from '#shared/registry/reference.ts';

/** Why a request is not taken; the HTTP status is the sender's answer. */
export class IntakeError extends Error {
  override readonly name = 'IntakeError';
  readonly code: 'malformed' | 'too-large' | 'unsupported' | 'forbidden';
  constructor(code: IntakeError['code'], message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

export interface Taken {
  readonly events: readonly KindlingEvent[];
  /** Of the request's events: those that are none of our business. */
  readonly ignored: number;
}

/** Types that may come from outside; `image.indexed` is the indexer's word alone. */
const FROM_OUTSIDE = new Set(['image.pushed', 'function.deployed']);

/**
 * What a registry's notification asks of us. Pushes to registries that are not allowed are left out, not refused: a refusal
 * would make the registry send the same again and hold back all that comes behind it.
 *
 * @throws IntakeError
 */
export function takeNotification(body: Uint8Array, allowed: AllowedRepositories): Taken {
  const notices = translated(() => parseNotification(body));
  const events = notices.flatMap((notice): KindlingEvent[] => {
    const image = `${notice.host}/${notice.repository}${notice.tag === undefined ? `@${notice.digest}` : `:${notice.tag}`}`;
    try {
      const reference = parseReference(image);
      if (!allowed.allows(reference.repository)) return [];
      const data = { image: formatReference(reference), digest: notice.digest };
      return [{ type: 'image.pushed', id: notice.id, source: `registry://${reference.host}`, data }];
    } catch (error) {
      if (error instanceof ImageReferenceError) return [];
      throw error;
    }
  });
  return { events, ignored: notices.length - events.length };
}

/**
 * What CloudEvents ask of us. All of a batch or nothing of it.
 *
 * @throws IntakeError
 */
export function takeCloudEvents(headers: HeaderMap, body: Uint8Array, allowed: AllowedRepositories): Taken {
  const events = translated(() => parseRequest(headers, body)).map((event) => take(event, allowed));
  return { events, ignored: 0 };
}

function take(event: CloudEvent, allowed: AllowedRepositories): KindlingEvent {
  const { type, id, source } = event;
  if (!isEventType(type) || !FROM_OUTSIDE.has(type)) {
    throw new IntakeError(
      'unsupported',
      `Cannot take an event of type ${JSON.stringify(type)}: only ${[...FROM_OUTSIDE].join(', ')}`,
    );
  }
  const data = translated(() => checkData(type, event.data));
  const reference = translated(() => parseReference(data.image));
  if (!allowed.allows(reference.repository)) {
    throw new IntakeError(
      'forbidden',
      `Cannot act on ${reference.repository}: it is not among KINDLING_GATEWAY_REGISTRIES`,
    );
  }
  return { type, id, source, data: { ...data, image: formatReference(reference) } } as KindlingEvent;
}

function translated<T>(parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    if (error instanceof CloudEventError) throw new IntakeError(error.code, error.message, { cause: error });
    if (error instanceof ImageReferenceError) throw new IntakeError('malformed', error.message, { cause: error });
    throw error;
  }
}
