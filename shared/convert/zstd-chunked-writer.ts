import { promisify } from 'node:util';
import { constants, zstdCompress } from 'node:zlib';
import { sha256 } from '#shared/digest/digest.ts';
import { ZSTD_CHUNKED_CHECKSUM_ANNOTATIONS } from '#shared/formats/toc/toc-tail.ts';
import {
  SKIPPABLE_HEADER_BYTES,
  skippableFrame,
  zstdChunkedFooter,
} from '#shared/formats/zstd-chunked/zstd-chunked-footer.ts';
import { TAR_END } from '#shared/tar/tar-writer.ts';
import type { LayerWriterOptions, WrittenLayer } from './layer-writer.ts';
import { writeEntries } from './lazy-layer.ts';
import { MemberWriter } from './member-writer.ts';

const compress = promisify(zstdCompress) as (
  bytes: Buffer,
  options: { params: Record<number, number> },
) => Promise<Buffer>;

const DEFAULT_LEVEL = 3;
const POSITION_ANNOTATION = 'io.github.containers.zstd-chunked.manifest-position';

/**
 * Writes a tar as zstd:chunked as Podman does since 2023: a frame for each chunk of a file, other frames for what is between them, the
 * manifest in a skippable frame, the 64-byte footer. `minChunkSize` does not apply: the format has no shared frames. The tar-split
 * frame is optional and left out. Memory: a few chunks, whatever the layer's size.
 *
 * @throws LayerError for a malformed tar; RangeError for sizes that make no sense.
 */
export async function writeZstdChunked(
  tar: AsyncIterable<Uint8Array>,
  options: LayerWriterOptions,
  sink: (bytes: Uint8Array) => Promise<void>,
  signal: AbortSignal,
): Promise<WrittenLayer> {
  const params = { [constants.ZSTD_c_compressionLevel]: options.level ?? DEFAULT_LEVEL };
  const members = new MemberWriter((bytes) => compress(bytes, { params }), sink, signal);
  const format = { withEnds: true, landmarks: 'prioritized' } as const;
  const toc = await writeEntries(tar, { ...options, minChunkSize: 0 }, format, members, signal);
  await members.write(TAR_END);
  await members.drain();
  const json = toc.json();
  const manifest = await compress(json, { params });
  const position = {
    manifestOffset: members.sizeBytes + SKIPPABLE_HEADER_BYTES,
    manifestBytes: manifest.length,
    manifestDecodedBytes: json.length,
  };
  await members.raw(skippableFrame(manifest));
  await members.raw(zstdChunkedFooter(position));
  return {
    ...members.digests(),
    sizeBytes: members.sizeBytes,
    annotations: {
      [ZSTD_CHUNKED_CHECKSUM_ANNOTATIONS[0]]: sha256(manifest),
      [POSITION_ANNOTATION]: `${position.manifestOffset}:${position.manifestBytes}:${position.manifestDecodedBytes}:1`,
    },
  };
}
