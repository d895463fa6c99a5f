import assert from 'node:assert/strict';
import { open } from 'node:fs/promises';
import { test } from 'node:test';
import { announcesToc, type BlobSource, buildLayerIndex } from '#shared/formats/build-index.ts';
import { SpanDecoder } from '#shared/formats/span-decoder.ts';
import { buildLayerImage } from '#shared/layer/layer-image.ts';
import type { LayerIndex } from '#shared/layer/layer-index.ts';
import { parseSpanMap } from '#shared/layer/span-map-file.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { writeAwkwardImage } from '#test/images/awkward.ts';
import { testImage } from '#test/images/image-cache.ts';
import { OciLayout } from '#test/images/oci-layout.ts';
import { runTool } from '#test/images/tool.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root to build the images';

/** What lazy formats add, and the tar of a zstd:chunked blob does not have. */
const ADDED = new Set(['stargz.index.json', '.prefetch.landmark', '.no.prefetch.landmark']);

function sourceOf(path: string): BlobSource {
  return {
    range: async (start, end) => {
      await using file = await open(path);
      const bytes = Buffer.alloc(end - start);
      await file.read(bytes, 0, bytes.length, start);
      return bytes;
    },
    async *stream() {
      await using file = await open(path);
      for (let at = 0; ; ) {
        const bytes = Buffer.allocUnsafe(256 * 1024);
        const { bytesRead } = await file.read(bytes, 0, bytes.length, at);
        if (bytesRead === 0) return;
        at += bytesRead;
        yield bytes.subarray(0, bytesRead);
      }
    },
  };
}

/** Every span decoded and verified. */
async function decodeAll(index: LayerIndex, source: BlobSource, signal: AbortSignal): Promise<number> {
  const map = parseSpanMap(buildLayerImage(index).map);
  using decoder = new SpanDecoder();
  let bytes = 0;
  for (let span = 0; span < map.spanCount; span += 1) {
    const range = await source.range(map.blobStart(span), map.blobEnd(span), signal);
    bytes += decoder.decode(map, span, { form: 'compressed', bytes: range }).length;
  }
  return bytes;
}

async function checkLayers(layout: OciLayout, format: 'estargz' | 'zstd-chunked', signal: AbortSignal): Promise<void> {
  const { manifest } = await layout.manifest();
  const { diff_ids: diffIds } = (await layout.config()).rootfs;
  for (const [at, layer] of manifest.layers.entries()) {
    const source = sourceOf(layout.blobPath(layer.digest));
    assert.ok(announcesToc(layer), JSON.stringify(layer));
    const byToc = await buildLayerIndex(source, layer, {}, signal);
    assert.equal(byToc.format, format);
    const checked = await buildLayerIndex(source, layer, { toc: 'check', onContradiction: assert.fail }, signal);
    assert.deepEqual(checked, { ...byToc, diffId: diffIds[at] });
    const bytes = await decodeAll(byToc, source, signal);
    const total = byToc.entries.reduce(
      (sum, { extents }) => sum + extents.reduce((all, { length }) => all + length, 0),
      0,
    );
    assert.equal(bytes, total);
    const added = byToc.entries.filter(({ path }) => ADDED.has(path.toString())).length;
    assert.ok(added <= 1);
  }
}

for (const [variant, format] of [
  ['ctr-remote-optimized', 'estargz'],
  ['ctr-remote-zstd-chunked', 'zstd-chunked'],
] as const) {
  test(`${variant}: the TOC says what the tar says, and every span can be had from the blob`, { skip }, async ({
    signal,
  }) => {
    const layout = await testImage('perl', signal, variant);
    await checkLayers(layout, format, signal);
  });
}

test('zstd:chunked as skopeo writes it is read by its manifest', { skip }, async ({ signal }) => {
  await using folder = await TempFolder.create('sk');
  const plain = await writeAwkwardImage(folder.join('plain'), 'gzip-6', signal);
  const target = folder.join('chunked');
  await runTool(
    'skopeo',
    [
      '--insecure-policy',
      'copy',
      '--dest-compress-format',
      'zstd:chunked',
      `oci:${plain.folder}:latest`,
      `oci:${target}:latest`,
    ],
    signal,
  );
  await checkLayers(new OciLayout(target), 'zstd-chunked', signal);
});
