import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { digestOfHex, type Digest } from '#shared/digest/digest.ts';

export async function fileDigest(path: string, signal: AbortSignal): Promise<Digest> {
  const hash = createHash('sha256');
  for await (const part of createReadStream(path, { signal }) as AsyncIterable<Buffer>) hash.update(part);
  return digestOfHex(hash.digest('hex'));
}
