import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { fakeTocLayer } from '#shared/layer/fake-toc-layer.ts';
import { buildLayerImage } from '#shared/layer/layer-image.ts';
import { parseSpanMap } from '#shared/layer/span-map-file.ts';
import { LayerError } from '#shared/layer/layer-index.ts';
import { SpanDecoder } from './span-decoder.ts';

const files = Array.from({ length: 12 }, (_, i) =>
  Buffer.concat([Buffer.alloc(3_000 + 700 * i, `text ${i} `), randomBytes(40)]),
);

function layerOf(format: 'estargz' | 'zstd-chunked') {
  const { blob, index } = fakeTocLayer(format, files);
  const map = parseSpanMap(buildLayerImage(index).map);
  using decoder = new SpanDecoder();
  const payload = Buffer.from(decoder.decode(map, 0, { form: 'compressed', bytes: blob }));
  const image = Buffer.alloc(map.imageSize);
  for (const { decodedOffset, imageOffset, length } of map.extents(0)) {
    payload.copy(image, imageOffset, decodedOffset, decodedOffset + length);
  }
  return { blob, map, image };
}

for (const format of ['estargz', 'zstd-chunked'] as const) {
  test(`any range of a span of ${format} comes without the rest of it, with the same bytes`, () => {
    const { blob, map, image } = layerOf(format);
    using decoder = new SpanDecoder();
    fc.assert(
      fc.property(fc.nat(map.imageSize), fc.integer({ min: 1, max: 9_000 }), (start, length) => {
        const end = Math.min(map.imageSize, start + length);
        const parts = decoder.decodeParts(map, 0, blob, [[start, end]]);
        assert.ok(parts);
        const got = Buffer.alloc(map.imageSize);
        for (const { imageOffset, bytes } of parts) {
          got.set(bytes, imageOffset);
          assert.deepEqual(Buffer.from(bytes), image.subarray(imageOffset, imageOffset + bytes.length));
        }
        // Where the span has nothing the image has zeros.
        assert.deepEqual(got.subarray(start, end), image.subarray(start, end));
      }),
    );
  });

  test(`a part of ${format} that is wrong is refused, and hides behind no other`, () => {
    const { blob, map } = layerOf(format);
    using decoder = new SpanDecoder();
    const [first, second] = map.segments(0);
    const [, extent] = map.extents(0);
    assert.ok(first && second && extent);
    const wanted = [[extent.imageOffset, extent.imageOffset + 1]] as const;
    for (let at = second.blobOffset; at < second.blobOffset + second.blobLength; at++) {
      const lying = Buffer.from(blob);
      lying[at] = (lying[at] ?? 0) ^ 0x10;
      let parts: ReturnType<SpanDecoder['decodeParts']>;
      try {
        parts = decoder.decodeParts(map, 0, lying, wanted);
      } catch (error) {
        assert.ok(error instanceof LayerError);
        continue;
      }
      // A header or a checksum that decoders pass over: the content is right.
      assert.deepEqual(Buffer.concat(parts?.map(({ bytes }) => bytes) ?? []), files[1]);
    }
    const elsewhere = Buffer.from(blob);
    elsewhere.fill(0x55, first.blobOffset, first.blobOffset + first.blobLength);
    assert.equal(decoder.decodeParts(map, 0, elsewhere, wanted)?.length, 1);
    assert.throws(() => decoder.decode(map, 0, { form: 'compressed', bytes: elsewhere }), LayerError);
  });
}

test('where most of a span is wanted, or it has no parts, all of it is to be decoded', () => {
  const { blob, map } = layerOf('estargz');
  using decoder = new SpanDecoder();
  assert.equal(decoder.decodeParts(map, 0, blob, [[0, map.imageSize]]), undefined);
  assert.equal(decoder.decodeParts(map, 0, blob.subarray(1), [[map.imageStart(0), map.imageStart(0) + 1]]), undefined);
  const { blob: one, index } = fakeTocLayer('estargz', [Buffer.alloc(9_000, 'a')]);
  const single = parseSpanMap(buildLayerImage(index).map);
  assert.equal(decoder.decodeParts(single, 0, one, [[single.imageStart(0), single.imageStart(0) + 1]]), undefined);
});
