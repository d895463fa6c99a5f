import { readFile } from 'node:fs/promises';
import { gunzipSync } from 'node:zlib';
import { sha256 } from '#shared/digest/digest.ts';
import { externalTocFooter, parseEstargzFooter } from '#shared/formats/estargz/estargz-footer.ts';
import { TOC_DIGEST_ANNOTATION } from '#shared/formats/toc/toc-tail.ts';
import { MEDIA_TYPES } from '#shared/registry/manifest.ts';
import type { TestRegistry } from '#test/harness/registry.ts';
import { type Descriptor, MANIFEST_TYPE, type OciLayout } from './oci-layout.ts';
import { RawPusher } from './raw-pusher.ts';

/** Which TOCs lie in the image beside it: all, none, or those of other layers under these layers' names. */
export type OutsideTocs = 'right' | 'missing' | 'exchanged';

/**
 * Pushes an eStargz image whose layers have their TOCs outside, as `ctr-remote image convert --estargz-external-toc` lays it out, and
 * returns its reference.
 *
 * @param estargz an image whose layers have them inside
 */
export async function pushWithExternalTocs(
  registry: TestRegistry,
  estargz: OciLayout,
  name: string,
  tag: OutsideTocs,
  signal: AbortSignal,
): Promise<string> {
  await using pusher = new RawPusher(registry, name);
  const { manifest } = await estargz.manifest();
  const layers: Descriptor[] = [];
  const tocs = new Map<string, Buffer>();
  const diffIds: string[] = [];
  for (const { digest, mediaType, annotations } of manifest.layers) {
    const blob = await readFile(estargz.blobPath(digest));
    const footer = parseEstargzFooter(blob.subarray(-64));
    if (footer?.kind !== 'estargz') {
      // Without files, so that there is nothing to be lazy about.
      layers.push({ mediaType, ...(await pusher.blob(blob, signal)) });
      diffIds.push(sha256(gunzipSync(blob)));
      continue;
    }
    const data = Buffer.concat([blob.subarray(0, footer.tocOffset), externalTocFooter()]);
    diffIds.push(sha256(gunzipSync(data)));
    const toc = annotations?.[TOC_DIGEST_ANNOTATION] ?? '';
    const pushed = await pusher.blob(data, signal);
    layers.push({ mediaType, ...pushed, annotations: { [TOC_DIGEST_ANNOTATION]: toc } });
    tocs.set(pushed.digest, blob.subarray(footer.tocOffset, blob.length - footer.footerBytes));
  }
  const was = await estargz.config();
  const config = Buffer.from(JSON.stringify({ ...was, rootfs: { type: 'layers', diff_ids: diffIds } }));
  const image = {
    schemaVersion: 2,
    mediaType: MANIFEST_TYPE,
    config: { mediaType: MEDIA_TYPES.ociConfig, ...(await pusher.blob(config, signal)) },
    layers,
  };
  await pusher.document(image, tag, signal);
  if (tag === 'missing') return registry.reference(name, tag);
  const outside = [];
  const names = [...tocs.keys()];
  if (tag === 'exchanged') names.reverse();
  for (const [i, toc] of [...tocs.values()].entries()) {
    const digest = names[i] ?? '';
    outside.push({
      mediaType: MEDIA_TYPES.ociLayerGzip,
      ...(await pusher.blob(Buffer.from(toc), signal)),
      annotations: { 'containerd.io/snapshot/stargz/layer.digest': digest },
    });
  }
  const empty = Buffer.from('{"architecture":"","os":"","config":{},"rootfs":{"type":"","diff_ids":null}}');
  const tocImage = {
    ...image,
    config: { mediaType: MEDIA_TYPES.ociConfig, ...(await pusher.blob(empty, signal)) },
    layers: outside,
  };
  await pusher.document(tocImage, `${tag}-esgztoc`, signal);
  return registry.reference(name, tag);
}
