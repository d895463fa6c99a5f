/** Small layers for tests as TOC formats have them: every file is a compressed member of its own. */
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { sha256 } from '#shared/digest/digest.ts';
import { fakeEntry } from './fake-layer.ts';
import type { LayerIndex } from './layer-index.ts';

/** The blob (nothing but the members) and its index: all files in one span. */
export function fakeTocLayer(
  format: 'estargz' | 'zstd-chunked',
  files: readonly Buffer[],
): { readonly blob: Buffer; readonly index: LayerIndex } {
  const members = files.map((file) => (format === 'estargz' ? gzipSync(file) : zstdCompressSync(file)));
  const blob = Buffer.concat(members);
  let blobOffset = 0;
  const segments = members.map((member, i) => {
    const at = blobOffset;
    blobOffset += member.length;
    return { blobOffset: at, blobLength: member.length, skip: 0, length: files[i]?.length ?? 0 };
  });
  let streamOffset = 0;
  const entries = files.map((file, i) => {
    const at = streamOffset;
    streamOffset += file.length;
    return fakeEntry(`file-${String(i).padStart(4, '0')}`, 'file', {
      size: file.length,
      extents: [{ fileOffset: 0, streamOffset: at, length: file.length }],
    });
  });
  const pieces = files.map((file) => ({ length: file.length, digest: sha256(file) }));
  const index: LayerIndex = {
    layer: sha256(blob),
    blobSize: blob.length,
    diffId: undefined,
    format,
    entries,
    spans: [{ streamLength: streamOffset, segments, pieces, checkpoint: undefined }],
    prioritySpans: 0,
  };
  return { blob, index };
}
