import { promisify } from 'node:util';
import { gzip, type ZlibOptions } from 'node:zlib';
import { sha256 } from '#shared/digest/digest.ts';
import { estargzFooter } from '#shared/formats/estargz/estargz-footer.ts';
import { TAR_END, tarHeader, tarPadding } from '#shared/tar/tar-writer.ts';
import type { LayerWriterOptions, WrittenLayer } from './layer-writer.ts';
import { ownFile, writeEntries } from './lazy-layer.ts';
import { MemberWriter } from './member-writer.ts';

const compress = promisify(gzip) as (bytes: Buffer, options: ZlibOptions) => Promise<Buffer>;

const DEFAULT_LEVEL = 6;
const TOC_NAME = 'stargz.index.json';

/**
 * Writes a tar as eStargz: a gzip stream whose members begin at each chunk of a file, then the TOC as a last file of the tar, then a
 * footer that says where that is. Any gzip and tar reads it as an ordinary layer. Memory: a few chunks, whatever the layer's size.
 *
 * @throws LayerError for a malformed tar; RangeError for sizes that make no sense.
 */
export async function writeEstargz(
  tar: AsyncIterable<Uint8Array>,
  options: LayerWriterOptions,
  sink: (bytes: Uint8Array) => Promise<void>,
  signal: AbortSignal,
): Promise<WrittenLayer> {
  const level = options.level ?? DEFAULT_LEVEL;
  const members = new MemberWriter((bytes) => compress(bytes, { level }), sink, signal);
  const toc = await writeEntries(tar, options, { withEnds: false, landmarks: 'always' }, members, signal);
  await members.drain();
  const tocOffset = members.sizeBytes;
  const json = toc.json();
  const header = tarHeader(ownFile(TOC_NAME, json.length));
  await members.write(Buffer.concat([header, json, tarPadding(json.length), TAR_END]));
  await members.drain();
  await members.raw(estargzFooter(tocOffset));
  return {
    ...members.digests(),
    sizeBytes: members.sizeBytes,
    annotations: {
      'containerd.io/snapshot/stargz/toc.digest': sha256(json),
      'io.containers.estargz.uncompressed-size': String(members.uncompressedSize),
    },
  };
}
