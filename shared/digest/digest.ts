import { createHash } from 'node:crypto';

/** An OCI content digest, `sha256:` and 64 lower-case hex digits. Parsed once at the edge, trusted inside. */
export type Digest = string & { readonly __brand: 'Digest' };

export class DigestError extends Error {
  override readonly name = 'DigestError';
  readonly code = 'invalid';
}

const DIGEST = /^sha256:[0-9a-f]{64}$/;

export function isDigest(text: unknown): text is Digest {
  return typeof text === 'string' && DIGEST.test(text);
}

/** @throws DigestError when `text` is not a sha256 digest; `what` names the place in the message. */
export function parseDigest(text: unknown, what: string): Digest {
  if (!isDigest(text)) {
    throw new DigestError(
      `Cannot use ${what}: ${JSON.stringify(String(text).slice(0, 100))} is not "sha256:" and 64 hex digits`,
    );
  }
  return text;
}

export function sha256(...parts: readonly Uint8Array[]): Digest {
  const hash = createHash('sha256');
  for (const part of parts) hash.update(part);
  return `sha256:${hash.digest('hex')}` as Digest;
}

/** The 64 hex digits: safe as a file name. */
export function hexOf(digest: Digest): string {
  return digest.slice('sha256:'.length);
}

export function digestOfHex(hex: string): Digest {
  return parseDigest(`sha256:${hex}`, 'a digest in hex');
}

/** The 32 raw bytes. */
export function bytesOf(digest: Digest): Buffer {
  return Buffer.from(hexOf(digest), 'hex');
}

/** The digest that 32 raw bytes are. */
export function digestOfBytes(bytes: Uint8Array): Digest {
  if (bytes.length !== 32) throw new DigestError(`Cannot use ${bytes.length} bytes as a sha256 digest: it has 32`);
  return `sha256:${Buffer.from(bytes.buffer, bytes.byteOffset, 32).toString('hex')}` as Digest;
}
