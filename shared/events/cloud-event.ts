import { z } from 'zod';

/**
 * CloudEvents 1.0 over HTTP and on the bus, as far as JSON data goes.
 * https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md and bindings/http-protocol-binding.md
 */
export const EVENT_LIMITS = {
  /** Bytes of one event. The specification asks intermediaries for at least 64 KiB. */
  eventBytes: 256 * 1024,
  /** Events of a batch. */
  batch: 256,
  /** Characters of an attribute. */
  attribute: 1024,
  /** Extension attributes of an event. */
  extensions: 32,
} as const;

export const STRUCTURED = 'application/cloudevents+json';
export const BATCH = 'application/cloudevents-batch+json';

/** No control characters, as the specification's String type. */
const text = z
  .string()
  .min(1)
  .max(EVENT_LIMITS.attribute)
  .regex(/^\P{Cc}*$/u, 'control characters are not allowed');

const schema = z
  .object({
    specversion: z.literal('1.0', { error: 'only CloudEvents 1.0 is understood' }),
    id: text,
    source: text,
    type: text,
    subject: text.optional(),
    time: z.iso.datetime({ offset: true }).optional(),
    datacontenttype: text.optional(),
    dataschema: text.optional(),
    data: z.json().optional(),
    data_base64: z.base64().optional(),
  })
  .catchall(z.union([text, z.boolean(), z.int()]))
  .refine(
    (event) => event.data === undefined || event.data_base64 === undefined,
    '"data" and "data_base64" exclude each other',
  )
  .refine(
    (event) => Object.keys(event).every((name) => /^([a-z0-9]{1,40}|data_base64)$/.test(name)),
    'attribute names are up to 40 lower-case letters and digits',
  )
  .refine(
    (event) => Object.keys(event).length <= 10 + EVENT_LIMITS.extensions,
    `at most ${EVENT_LIMITS.extensions} extension attributes`,
  );

export type CloudEvent = z.infer<typeof schema>;

export type CloudEventErrorCode = 'malformed' | 'too-large' | 'unsupported';

export class CloudEventError extends Error {
  override readonly name = 'CloudEventError';
  readonly code: CloudEventErrorCode;
  constructor(code: CloudEventErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** Checks one event in its JSON form. @throws CloudEventError; `what` names it in the message. */
export function checkCloudEvent(json: unknown, what = 'the event'): CloudEvent {
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  const problems = parsed.error.issues
    .slice(0, 5)
    .map((issue) => `${issue.path.join('.') || 'event'}: ${issue.message}`);
  throw new CloudEventError('malformed', `Cannot read ${what}: ${problems.join('; ')}`);
}

/** One event in structured mode, as it is kept on the bus. @throws CloudEventError */
export function parseStructured(bytes: Uint8Array, what = 'the event'): CloudEvent {
  if (bytes.length > EVENT_LIMITS.eventBytes) throw tooLarge(what, bytes.length);
  return checkCloudEvent(parseJson(bytes, what), what);
}

/** In structured mode. */
export function serialise(event: Readonly<Record<string, unknown>>): Buffer {
  return Buffer.from(JSON.stringify(event));
}

/** Headers by lower-case name, as node:http has them. */
export type HeaderMap = Readonly<Record<string, string | readonly string[] | undefined>>;

/**
 * Reads the events of an HTTP request in whichever of the three modes its content type says.
 *
 * @throws CloudEventError
 */
export function parseRequest(headers: HeaderMap, body: Uint8Array): readonly CloudEvent[] {
  const contentType = (header(headers, 'content-type') ?? '').toLowerCase();
  const mediaType = contentType.split(';')[0]?.trim() ?? '';
  if (mediaType === BATCH) return parseBatch(body);
  if (mediaType === STRUCTURED) return [parseStructured(body)];
  if (mediaType.startsWith('application/cloudevents')) {
    throw new CloudEventError('unsupported', `Cannot read ${mediaType}: send ${STRUCTURED}, ${BATCH} or binary mode`);
  }
  return [parseBinary(headers, mediaType, body)];
}

function parseBatch(body: Uint8Array): readonly CloudEvent[] {
  const json = parseJson(body, 'the batch');
  if (!Array.isArray(json)) throw new CloudEventError('malformed', 'Cannot read the batch: it is not a JSON array');
  if (json.length > EVENT_LIMITS.batch) {
    throw new CloudEventError(
      'too-large',
      `Cannot take a batch of ${json.length} events: at most ${EVENT_LIMITS.batch}`,
    );
  }
  return json.map((one: unknown, i) => {
    const what = `event ${i} of the batch`;
    const size = sizeOf(one, what);
    if (size > EVENT_LIMITS.eventBytes) throw tooLarge(what, size);
    return checkCloudEvent(one, what);
  });
}

function sizeOf(json: unknown, what: string): number {
  try {
    return Buffer.byteLength(JSON.stringify(json));
  } catch (cause) {
    // What node reads it may not be able to write: it recurses.
    throw new CloudEventError('malformed', `Cannot read ${what}: it is nested too deeply`, { cause });
  }
}

function parseBinary(headers: HeaderMap, mediaType: string, body: Uint8Array): CloudEvent {
  if (header(headers, 'ce-specversion') === undefined) {
    throw new CloudEventError(
      'unsupported',
      `Cannot read the request: neither ${STRUCTURED}, ${BATCH} nor a ce-specversion header`,
    );
  }
  if (body.length > EVENT_LIMITS.eventBytes) throw tooLarge('the event', body.length);
  const event: Record<string, unknown> = {};
  for (const name of Object.keys(headers)) {
    if (!name.startsWith('ce-')) continue;
    const attribute = name.slice('ce-'.length);
    // `data` has no header of its own: it would stand beside the body.
    if (attribute === 'data' || attribute === 'data_base64') continue;
    event[attribute] = decodePercent(header(headers, name) ?? '');
  }
  if (mediaType !== '') event['datacontenttype'] = mediaType;
  if (body.length > 0) {
    if (mediaType === '' || /^application\/([\w.+-]+\+)?json$/.test(mediaType))
      event['data'] = parseJson(body, 'the data');
    else event['data_base64'] = Buffer.from(body).toString('base64');
  }
  return checkCloudEvent(event);
}

function header(headers: HeaderMap, name: string): string | undefined {
  const value = headers[name];
  return typeof value === 'string' ? value : value?.[0];
}

/** Header values are percent-encoded UTF-8; what is no valid encoding stands for itself. */
function decodePercent(value: string): string {
  const unquoted = /^"(.*)"$/.exec(value)?.[1]?.replaceAll(/\\(.)/g, '$1') ?? value;
  try {
    return decodeURIComponent(unquoted);
  } catch {
    return unquoted;
  }
}

function parseJson(bytes: Uint8Array, what: string): unknown {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes)) as unknown;
  } catch (cause) {
    throw new CloudEventError('malformed', `Cannot read ${what}: it is not JSON in UTF-8`, { cause });
  }
}

function tooLarge(what: string, size: number): CloudEventError {
  return new CloudEventError('too-large', `Cannot take ${what}: ${size} bytes, at most ${EVENT_LIMITS.eventBytes}`);
}
