import type { LayerEntry } from '#shared/layer/layer-index.ts';
import { TAR_BLOCK_BYTES } from '#shared/tar/tar-header.ts';
import { tarHeader } from '#shared/tar/tar-writer.ts';
import type { LayerWriterOptions } from './layer-writer.ts';
import type { MemberWriter } from './member-writer.ts';
import { prioritizedTar } from './prioritized-tar.ts';
import { tarEvents } from './tar-events.ts';
import { DEFAULT_CHUNK_BYTES, TocWriter, type TocWriterOptions } from './toc-writer.ts';

/** A multiple of tar's blocks, and not more than a reader decodes at once. */
const MAX_CHUNK_BYTES = 16 * 1024 * 1024;

/**
 * Puts a tar's entries into members; returns the TOC once all of them are written. Nothing of the tar's own end is written.
 *
 * @param landmarks `always`: also say so where no file is to be fetched first.
 */
export async function writeEntries(
  tar: AsyncIterable<Uint8Array>,
  options: LayerWriterOptions,
  format: Pick<TocWriterOptions, 'withEnds'> & { readonly landmarks: 'always' | 'prioritized' },
  members: MemberWriter,
  signal: AbortSignal,
): Promise<TocWriter> {
  const chunkSize = options.chunkSize ?? DEFAULT_CHUNK_BYTES;
  const minChunkSize = options.minChunkSize ?? 0;
  if (!Number.isInteger(chunkSize) || chunkSize < TAR_BLOCK_BYTES || chunkSize > MAX_CHUNK_BYTES) {
    throw new RangeError(
      `Cannot write chunks of ${chunkSize} bytes: ${TAR_BLOCK_BYTES} to ${MAX_CHUNK_BYTES} are possible`,
    );
  }
  if (!Number.isInteger(minChunkSize) || minChunkSize < 0 || minChunkSize > MAX_CHUNK_BYTES) {
    throw new RangeError(
      `Cannot write members of at least ${minChunkSize} bytes: 0 to ${MAX_CHUNK_BYTES} are possible`,
    );
  }
  const toc = new TocWriter(members, { chunkSize, minChunkSize, withEnds: format.withEnds });
  const events = tarEvents(tar, signal);
  const prioritize = options.prioritize ?? [];
  if (prioritize.length === 0) {
    if (format.landmarks === 'always') await putLandmark(toc, '.no.prefetch.landmark');
    for await (const event of events) await toc.take(event);
  } else {
    for await (const event of prioritizedTar(events, prioritize, options.spoolFolder, signal)) {
      await (event === undefined ? putLandmark(toc, '.prefetch.landmark') : toc.take(event));
    }
  }
  await toc.pad();
  return toc;
}

/** A file of the format's own, which is none of the layer's. */
export function ownFile(name: string, size: number): LayerEntry {
  return {
    path: Buffer.from(name),
    type: 'file',
    mode: 0o444,
    uid: 0,
    gid: 0,
    mtimeSeconds: 0,
    mtimeNanoseconds: 0,
    size,
    linkName: Buffer.alloc(0),
    deviceMajor: 0,
    deviceMinor: 0,
    xattrs: [],
    extents: [],
  };
}

function putLandmark(toc: TocWriter, name: string): Promise<void> {
  const entry = ownFile(name, 1);
  return toc.landmark(entry, tarHeader(entry));
}
