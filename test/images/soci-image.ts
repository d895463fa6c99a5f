import { readFile } from 'node:fs/promises';
import { gunzipSync } from 'node:zlib';
import { hexOf, sha256, type Digest } from '#shared/digest/digest.ts';
import { buildLayerIndex } from '#shared/formats/build-index.ts';
import {
  SOCI_INDEX_ANNOTATION,
  SOCI_LAYER_ANNOTATION,
  SOCI_V1,
  SOCI_V2,
  ZTOC_TYPE,
} from '#shared/indexes/soci-indexes.ts';
import { MEDIA_TYPES } from '#shared/registry/manifest.ts';
import { RegistryClient } from '#shared/registry/registry-client.ts';
import type { TestRegistry } from '#test/harness/registry.ts';
import { type Descriptor, MANIFEST_TYPE, type OciLayout } from './oci-layout.ts';
import { writeZtoc } from './soci-ztoc.ts';

export interface SociImageOptions {
  /** 1: an index that refers to the image, found by the fallback tag; 2: one that the image's manifest names. */
  readonly version: 1 | 2;
  readonly spanBytes: number;
  /** zTOC number i is of this layer, and said to be of layer i; undefined = layer i has none. */
  readonly ztocOf: readonly (number | undefined)[];
}

/** A manifest or an index. */
type Document = Readonly<Record<string, unknown>> & { readonly mediaType: string };

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
  const client = new RegistryClient();
  try {
    const repository = `${registry.host}/${name}`;
    const upload = async (bytes: Buffer): Promise<Pick<Descriptor, 'digest' | 'size'>> => {
      const blob = { digest: sha256(bytes), size: bytes.length };
      await client.uploadBlob(repository, blob, () => once(bytes), signal);
      return blob;
    };
    const { manifest, digest, bytes } = await layout.manifest();
    const ztocs = [];
    for (const [i, layer] of options.ztocOf.entries()) {
      const described = manifest.layers[i];
      const source = manifest.layers[layer ?? -1];
      if (described === undefined || source === undefined) continue;
      const blob = await upload(await ztocOf(layout, source, options.spanBytes, signal));
      ztocs.push({ mediaType: ZTOC_TYPE, ...blob, annotations: { [SOCI_LAYER_ANNOTATION]: described.digest } });
    }
    const type = options.version === 1 ? SOCI_V1 : SOCI_V2;
    const soci = {
      schemaVersion: 2,
      mediaType: MANIFEST_TYPE,
      config: { mediaType: type, ...(await upload(EMPTY)) },
      layers: ztocs,
      ...(options.version === 1 ? { subject: { mediaType: MANIFEST_TYPE, digest, size: bytes.length } } : {}),
    };
    const index = await put(registry, name, soci, undefined, signal);
    const entry = { mediaType: MANIFEST_TYPE, ...index, artifactType: type };
    if (options.version === 1) {
      await put(registry, name, listOf([entry]), `sha256-${hexOf(digest)}`, signal);
      return reference;
    }
    const annotations = { [SOCI_INDEX_ANNOTATION]: index.digest };
    const image = await put(registry, name, { ...manifest, annotations }, undefined, signal);
    const platform = { os: 'linux', architecture: 'amd64' };
    const entries = [
      { mediaType: MANIFEST_TYPE, ...image, platform },
      { ...entry, platform },
    ];
    await put(registry, name, listOf(entries), tag, signal);
    return reference;
  } finally {
    await client.close();
  }
}

async function ztocOf(layout: OciLayout, layer: Descriptor, spanBytes: number, signal: AbortSignal): Promise<Buffer> {
  const blob = await readFile(layout.blobPath(layer.digest));
  const source = {
    range: async (start: number, end: number) => blob.subarray(start, end),
    stream: () => once(blob),
  };
  const { entries } = await buildLayerIndex(source, layer, { toc: 'never' }, signal);
  return writeZtoc(blob, entries, gunzipSync(blob).length, { spanBytes });
}

function listOf(manifests: readonly object[]): Document {
  return { schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests };
}

/** @param tag undefined: under its digest alone */
async function put(
  registry: TestRegistry,
  name: string,
  document: Document,
  tag: string | undefined,
  signal: AbortSignal,
): Promise<{ readonly digest: Digest; readonly size: number }> {
  const bytes = Buffer.from(JSON.stringify(document));
  const digest = sha256(bytes);
  const answer = await fetch(`http://${registry.host}/v2/${name}/manifests/${tag ?? digest}`, {
    method: 'PUT',
    headers: { 'content-type': document.mediaType },
    body: new Uint8Array(bytes),
    signal,
  });
  if (!answer.ok) throw new Error(`Cannot put ${name}:${tag ?? digest}: ${answer.status} ${await answer.text()}`);
  return { digest, size: bytes.length };
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}
