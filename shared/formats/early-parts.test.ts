import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';
import * as fc from 'fast-check';
import { sha256 } from '#shared/digest/digest.ts';
import { fakeMember, fakeTar } from '#shared/layer/fake-layer.ts';
import { fakeTocLayer } from '#shared/layer/fake-toc-layer.ts';
import { buildLayerImage } from '#shared/layer/layer-image.ts';
import { parseSpanMap } from '#shared/layer/span-map-file.ts';
import { LayerError } from '#shared/layer/layer-index.ts';
import { buildLayerIndex } from './build-index.ts';
import { type EarlyParts, type ImagePart, type SpanCoding, SpanDecoder } from './span-decoder.ts';

const files = Array.from({ length: 12 }, (_, i) =>
  Buffer.concat([Buffer.alloc(3_000 + 700 * i, `text ${i} `), randomBytes(40)]),
);

/** What comes early of a span; undefined: nothing. */
function early(
  map: SpanCoding,
  blob: Buffer,
  wanted: EarlyParts['wanted'],
  span = 0,
): readonly ImagePart[] | undefined {
  using decoder = new SpanDecoder();
  let parts: readonly ImagePart[] | undefined;
  const ready = (given: readonly ImagePart[]) => {
    assert.equal(parts, undefined);
    parts = given.map(({ imageOffset, bytes }) => ({ imageOffset, bytes: Buffer.from(bytes) }));
  };
  try {
    decoder.decode(map, span, { form: 'compressed', bytes: blob }, { wanted, ready });
  } catch (error) {
    assert.ok(error instanceof LayerError);
  }
  return parts;
}

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
    fc.assert(
      fc.property(fc.nat(map.imageSize), fc.integer({ min: 1, max: 9_000 }), (start, length) => {
        const end = Math.min(map.imageSize, start + length);
        const parts = early(map, blob, [[start, end]]);
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
      const parts = early(map, lying, wanted);
      // A header or a checksum that decoders pass over: the content is right.
      if (parts !== undefined) assert.deepEqual(Buffer.concat(parts.map(({ bytes }) => bytes)), files[1]);
    }
    const elsewhere = Buffer.from(blob);
    elsewhere.fill(0x55, first.blobOffset, first.blobOffset + first.blobLength);
    assert.equal(early(map, elsewhere, wanted)?.length, 1);
    assert.throws(() => decoder.decode(map, 0, { form: 'compressed', bytes: elsewhere }), LayerError);
  });
}

test('a range of a gzip span comes when its piece is decoded, with the same bytes, and nothing that is wrong', async () => {
  const members = Array.from({ length: 60 }, (_, i) =>
    fakeMember(`file-${i}`, 'file', Buffer.concat([randomBytes(9_000), Buffer.alloc(40_000 + i, `text ${i} `)])),
  );
  const blob = gzipSync(fakeTar(members));
  const index = await buildLayerIndex(
    {
      range: async (start, end) => blob.subarray(start, end),
      async *stream() {
        yield blob;
      },
    },
    { digest: sha256(blob), size: blob.length, annotations: {} },
    { threads: 'one' },
    new AbortController().signal,
  );
  const map = parseSpanMap(buildLayerImage(index).map);
  using decoder = new SpanDecoder();
  let came = 0;
  for (let span = 0; span < map.spanCount; span++) {
    const bytes = Buffer.from(blob.subarray(map.blobStart(span), map.blobEnd(span)));
    const payload = Buffer.from(decoder.decode(map, span, { form: 'compressed', bytes }));
    const image = Buffer.alloc(map.imageEnd(span));
    let at = 0;
    for (const { imageOffset, length } of map.extents(span)) {
      payload.copy(image, imageOffset, at, at + length);
      at += length;
    }
    for (const { imageOffset, length } of map.extents(span)) {
      const range = [imageOffset, imageOffset + Math.min(length, 5_000)] as const;
      const right = early(map, bytes, [range], span);
      for (const part of right ?? []) {
        assert.deepEqual(part.bytes, image.subarray(part.imageOffset, part.imageOffset + part.bytes.length));
      }
      if (right === undefined) continue;
      came += 1;
      const covers = right.some(
        (part) => part.imageOffset <= range[0] && part.imageOffset + part.bytes.length >= range[1],
      );
      assert.ok(covers);
      const lying = Buffer.from(bytes);
      const place = Math.floor((lying.length * (came % 97)) / 97);
      lying[place] = (lying[place] ?? 0) ^ 0x40;
      for (const part of early(map, lying, [range], span) ?? []) {
        assert.deepEqual(part.bytes, image.subarray(part.imageOffset, part.imageOffset + part.bytes.length));
      }
    }
  }
  assert.ok(came > 20, `${came} came early`);
});

test('where most of a span is wanted, or it has no parts, all of it is to be decoded', () => {
  const { blob, map } = layerOf('estargz');
  assert.equal(early(map, blob, [[0, map.imageSize]]), undefined);
  assert.equal(early(map, blob.subarray(1), [[map.imageStart(0), map.imageStart(0) + 1]]), undefined);
  const { blob: one, index } = fakeTocLayer('estargz', [Buffer.alloc(9_000, 'a')]);
  const single = parseSpanMap(buildLayerImage(index).map);
  assert.equal(early(single, one, [[single.imageStart(0), single.imageStart(0) + 1]]), undefined);
});
