import { readFile } from 'node:fs/promises';
import { gunzipSync } from 'node:zlib';
import { hexOf } from '#shared/digest/digest.ts';
import { buildLayerIndex } from '#shared/formats/build-index.ts';
import {
  SOCI_INDEX_ANNOTATION,
  SOCI_LAYER_ANNOTATION,
  SOCI_V1,
  SOCI_V2,
  ZTOC_TYPE,
} from '#shared/indexes/soci-indexes.ts';
import { MEDIA_TYPES } from '#shared/registry/manifest.ts';
import type { TestRegistry } from '#test/harness/registry.ts';
import { type Descriptor, MANIFEST_TYPE, type OciLayout } from './oci-layout.ts';
import { type Document, RawPusher } from './raw-pusher.ts';
import { writeZtoc } from './soci-ztoc.ts';

export interface SociImageOptions {
  /** 1: an index that refers to the image, found by the fallback tag; 2: one that the image's manifest names. */
  readonly version: 1 | 2;
  readonly spanBytes: number;
  /** zTOC number i is of this layer, and said to be of layer i; undefined = layer i has none. */
  readonly ztocOf: readonly (number | undefined)[];
}

const EMPTY = Buffer.from('{}');

/** Pushes an image of gzip layers with a SOCI index beside it, as SOCI's own tool lays it out, and returns its reference. */
export async function pushWithSoci(
  registry: TestRegistry,
  layout: OciLayout,
  name: string,
  tag: string,
  options: SociImageOptions,
  signal: AbortSignal,
): Promise<string> {
  const reference = await registry.push(layout, name, tag, signal);
  await using pusher = new RawPusher(registry, name);
  const { manifest, digest, bytes } = await layout.manifest();
  const ztocs = [];
  for (const [i, layer] of options.ztocOf.entries()) {
    const described = manifest.layers[i];
    const source = manifest.layers[layer ?? -1];
    if (described === undefined || source === undefined) continue;
    const blob = await pusher.blob(await ztocOf(layout, source, options.spanBytes, signal), signal);
    ztocs.push({ mediaType: ZTOC_TYPE, ...blob, annotations: { [SOCI_LAYER_ANNOTATION]: described.digest } });
  }
  const type = options.version === 1 ? SOCI_V1 : SOCI_V2;
  const soci = {
    schemaVersion: 2,
    mediaType: MANIFEST_TYPE,
    config: { mediaType: type, ...(await pusher.blob(EMPTY, signal)) },
    layers: ztocs,
    ...(options.version === 1 ? { subject: { mediaType: MANIFEST_TYPE, digest, size: bytes.length } } : {}),
  };
  const index = await pusher.document(soci, undefined, signal);
  const entry = { mediaType: MANIFEST_TYPE, ...index, artifactType: type };
  if (options.version === 1) {
    await pusher.document(listOf([entry]), `sha256-${hexOf(digest)}`, signal);
    return reference;
  }
  const annotations = { [SOCI_INDEX_ANNOTATION]: index.digest };
  const image = await pusher.document({ ...manifest, annotations }, undefined, signal);
  const platform = { os: 'linux', architecture: 'amd64' };
  const entries = [
    { ...entry, platform },
    { mediaType: MANIFEST_TYPE, ...image, platform },
  ];
  await pusher.document(listOf(entries), tag, signal);
  return reference;
}

async function ztocOf(layout: OciLayout, layer: Descriptor, spanBytes: number, signal: AbortSignal): Promise<Buffer> {
  const blob = await readFile(layout.blobPath(layer.digest));
  const source = {
    range: async (start: number, end: number) => blob.subarray(start, end),
    async *stream() {
      yield await Promise.resolve(blob);
    },
  };
  const { entries } = await buildLayerIndex(source, layer, { toc: 'never' }, signal);
  return writeZtoc(blob, entries, gunzipSync(blob).length, { spanBytes });
}

function listOf(manifests: readonly object[]): Document {
  return { schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests };
}
