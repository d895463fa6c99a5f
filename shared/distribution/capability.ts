import { createPublicKey, sign, verify, type KeyObject } from 'node:crypto';
import { z } from 'zod';
import { isDigest, type Digest } from '#shared/digest/digest.ts';
import { nodeRecord } from './messages.ts';

/**
 * The right of a node to get a layer's spans from other nodes until some time: `<payload>.<signature>`, both base64url, the
 * payload JSON, signed (Ed25519) by the distributor after the node has shown that it can pull the layer. It names the node's
 * address, so that the one who is asked knows where to ask back.
 */
const payload = z.strictObject({
  version: z.literal(1),
  layer: z.custom<Digest>(isDigest),
  record: nodeRecord,
  /** Milliseconds since the Unix epoch. */
  expiresMs: z.int(),
});
export type Capability = z.infer<typeof payload>;

export class CapabilityError extends Error {
  override readonly name = 'CapabilityError';
  readonly code: 'malformed' | 'forged' | 'expired' | 'other-layer';
  constructor(code: CapabilityError['code'], message: string) {
    super(message);
    this.code = code;
  }
}

/**
 * The right to report, as one node, peers that have sent wrong bytes: as a capability, but shown to distributors only, so that no
 * peer can speak in the name of those that asked it.
 */
const reporter = z.strictObject({
  version: z.literal(1),
  use: z.literal('report'),
  layer: z.custom<Digest>(isDigest),
  record: nodeRecord,
  expiresMs: z.int(),
});

const MAX_TEXT = 4096;
/** Clocks of machines differ. */
const CLOCK_SKEW_MS = 60_000;

export function issueCapability(capability: Omit<Capability, 'version'>, key: KeyObject): string {
  return signed({ version: 1, ...capability }, key);
}

export function issueReporter(capability: Omit<Capability, 'version'>, key: KeyObject): string {
  return signed({ version: 1, use: 'report', ...capability }, key);
}

/** @throws CapabilityError */
export function verifyCapability(text: string, layer: Digest, key: KeyObject, nowMs: number): Capability {
  return verified(payload, text, layer, key, nowMs);
}

/** @throws CapabilityError */
export function verifyReporter(
  text: string,
  layer: Digest,
  key: KeyObject,
  nowMs: number,
): Omit<Capability, 'version'> {
  return verified(reporter, text, layer, key, nowMs);
}

function signed(content: object, key: KeyObject): string {
  const bytes = Buffer.from(JSON.stringify(content));
  return `${bytes.toString('base64url')}.${sign(null, bytes, key).toString('base64url')}`;
}

function verified<T extends { readonly layer: Digest; readonly expiresMs: number }>(
  schema: z.ZodType<T>,
  text: string,
  layer: Digest,
  key: KeyObject,
  nowMs: number,
): T {
  const [body = '', signature = '', more] = text.split('.');
  if (text.length > MAX_TEXT || more !== undefined) {
    throw new CapabilityError('malformed', 'Refused a capability: it is not a payload and a signature');
  }
  const bytes = Buffer.from(body, 'base64url');
  if (!verify(null, bytes, key, Buffer.from(signature, 'base64url'))) {
    throw new CapabilityError('forged', "Refused a capability: its signature is not the distributor's");
  }
  let json: unknown;
  try {
    json = JSON.parse(bytes.toString('utf8'));
  } catch {
    json = undefined;
  }
  const parsed = schema.safeParse(json);
  if (!parsed.success) throw new CapabilityError('malformed', 'Refused a capability: another version issued it');
  if (parsed.data.expiresMs + CLOCK_SKEW_MS < nowMs) {
    throw new CapabilityError('expired', 'Refused a capability: it has expired; join the layer again');
  }
  if (parsed.data.layer !== layer) {
    throw new CapabilityError('other-layer', `Refused a capability: it is for ${parsed.data.layer}, not for ${layer}`);
  }
  return parsed.data;
}

/** Of `HelloReply.publicKey`. */
export function publicKeyFromText(text: string): KeyObject {
  return createPublicKey({ key: Buffer.from(text, 'base64'), format: 'der', type: 'spki' });
}

export function textOfPublicKey(key: KeyObject): string {
  return createPublicKey(key).export({ format: 'der', type: 'spki' }).toString('base64');
}
