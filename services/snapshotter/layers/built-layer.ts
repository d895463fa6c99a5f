import { closeSync, ftruncateSync, openSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { sha256 } from '#shared/digest/digest.ts';
import { isSeekable } from '#shared/formats/build-index.ts';
import type { LayerIndex } from '#shared/layer/layer-index.ts';
import { buildLayerImage } from '#shared/layer/layer-image.ts';
import { parseSpanMap, type DecodableSpanMap } from '#shared/layer/span-map-file.ts';
import { writeFully } from './image-writer.ts';
import { LAYER_FILES } from './layer-folder.ts';
import { Residency } from './residency.ts';
import type { BuiltLayer } from './worker-job.ts';

/**
 * Builds the layer image of an index and writes `image` (metadata, then a hole), `map` and `residency` (only spans without
 * payload) into `folder`. Synchronous, and some 100 ms for a large layer: for a worker thread.
 *
 * @throws LayerError when the index cannot be one.
 */
export function layOut(
  index: LayerIndex,
  folder: string,
): { readonly layer: BuiltLayer; readonly map: DecodableSpanMap } {
  const image = buildLayerImage(index);
  const fd = openSync(join(folder, LAYER_FILES.image), 'wx', 0o600);
  try {
    writeFully(fd, image.metadata, image.metadata.length, 0);
    ftruncateSync(fd, image.imageSize);
  } finally {
    closeSync(fd);
  }
  writeFileSync(join(folder, LAYER_FILES.map), image.map, { mode: 0o600 });
  const map = parseSpanMap(image.map);
  const residency = new Residency(map.spanCount);
  for (let span = 0; span < map.spanCount; span++) if (map.payloadLength(span) === 0) residency.add(span);
  writeFileSync(join(folder, LAYER_FILES.residency), residency.toBytes(), { mode: 0o600 });
  return {
    map,
    layer: {
      layer: index.layer,
      blobSize: index.blobSize,
      diffId: index.diffId,
      format: index.format,
      metadataSize: map.metadataSize,
      imageSize: image.imageSize,
      spanCount: map.spanCount,
      prioritySpans: map.prioritySpans,
      inodes: image.inodes,
      seekable: isSeekable(index),
      impliedDirectories: image.impliedDirectories.map((path) => path.toString('base64')),
      rootOwner: image.rootOwner,
      metadataDigest: sha256(image.metadata),
      mapDigest: sha256(image.map),
    },
  };
}
