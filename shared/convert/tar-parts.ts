import type { LayerEntry } from '#shared/layer/layer-index.ts';
import { TarReader } from '#shared/tar/tar-reader.ts';

/** A layer's tar taken apart; padding and the end of the archive are left out. */
export type TarPart =
  | {
      readonly kind: 'entry';
      readonly entry: LayerEntry;
      /** All header blocks of the entry as they were, PAX headers and long names too. */
      readonly header: Buffer;
    }
  /** A run of the last entry's stored content. */
  | { readonly kind: 'content'; readonly bytes: Uint8Array; readonly streamOffset: number };

const BLOCK_BYTES = 512;

/** Reads `tar` and hands on its parts, as many at a time as come together. @throws LayerError for what is no tar. */
export async function* tarParts(tar: AsyncIterable<Uint8Array>): AsyncGenerator<readonly TarPart[]> {
  let parts: TarPart[] = [];
  /** Stream position where the next header begins: after the last content and its padding. */
  let headerStart = 0;
  /** Bytes from `headerStart` on that came in chunks before the current one. */
  let kept: Uint8Array[] = [];
  let chunk: Uint8Array = new Uint8Array();
  let chunkStart = 0;
  const reader = new TarReader({
    entry(entry) {
      const end = reader.streamOffset;
      const inChunk = chunk.subarray(Math.max(0, headerStart - chunkStart), end - chunkStart);
      parts.push({ kind: 'entry', entry, header: Buffer.concat([...kept, inChunk]) });
      kept = [];
      headerStart = end;
    },
    payload(bytes, streamOffset) {
      parts.push({ kind: 'content', bytes, streamOffset });
      const end = streamOffset + bytes.length;
      headerStart = Math.ceil(end / BLOCK_BYTES) * BLOCK_BYTES;
    },
  });
  for await (const bytes of tar) {
    chunk = bytes;
    reader.push(bytes);
    const end = chunkStart + bytes.length;
    // Headers are at most a few MiB; the zeros after the end of the archive may be any number.
    if (headerStart < end && !reader.finished) kept.push(bytes.slice(Math.max(0, headerStart - chunkStart)));
    chunkStart = end;
    if (parts.length > 0) {
      yield parts;
      parts = [];
    }
  }
  reader.end();
}
