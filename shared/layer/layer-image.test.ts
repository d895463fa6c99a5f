import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';
import { sha256 } from '#shared/digest/digest.ts';
import { fakeEntry, fakeMember, fakeTar, fillImage, indexOfTar } from './fake-layer.ts';
import { type IndexSpan, LayerError, type LayerErrorCode, type LayerIndex } from './layer-index.ts';
import { buildLayerImage } from './layer-image.ts';
import { packCheckpoint } from './packed-checkpoint.ts';
import { parseSpanMap, parseSpanTable, SPAN_MAP_HEADER_BYTES, spanTableBytes, verifySpanMap } from './span-map-file.ts';

const CONTENT = Buffer.from(Array.from({ length: 9000 }, (_, i) => i * 31 + (i >> 8)));
const TAR = fakeTar([
  fakeMember('d', 'directory'),
  fakeMember('a', 'file', CONTENT.subarray(0, 5000)),
  fakeMember('d/b', 'file', CONTENT.subarray(0, 4096)),
  fakeMember('empty'),
  fakeMember('a', 'file', CONTENT.subarray(100, 150)),
  fakeMember('d/c', 'file', CONTENT),
]);

function refuses(index: LayerIndex, code: LayerErrorCode): void {
  assert.throws(
    () => buildLayerImage(index),
    (error) => error instanceof LayerError && error.code === code,
  );
}

function withSpan(index: LayerIndex, number: number, change: Partial<IndexSpan>): LayerIndex {
  return { ...index, spans: index.spans.map((span, i) => (i === number ? { ...span, ...change } : span)) };
}

describe('buildLayerImage', () => {
  it('places every file at a block of its own, in the order of the entries, hidden ones too', () => {
    const index = indexOfTar(TAR, 3000);
    const image = buildLayerImage(index);
    const file = fillImage(image, TAR);
    const start = image.metadata.length;
    assert.equal(start % 4096, 0);
    assert.equal(image.imageSize, start + (2 + 1 + 1 + 3) * 4096);
    assert.deepEqual(file.subarray(start, start + 5000), CONTENT.subarray(0, 5000));
    assert.deepEqual(file.subarray(start + 8192, start + 8192 + 4096), CONTENT.subarray(0, 4096));
    assert.deepEqual(file.subarray(start + 12288, start + 12288 + 50), CONTENT.subarray(100, 150));
    assert.deepEqual(file.subarray(start + 16384, start + 16384 + 9000), CONTENT);
    assert.equal(image.inodes, 6 - 1 + 1);
    assert.deepEqual(buildLayerImage(index), image);
  });

  it('tells the root owner only where the layer has a root entry', () => {
    assert.equal(buildLayerImage(indexOfTar(TAR, 3000)).rootOwner, undefined);
    const tar = fakeTar([fakeMember('', 'directory', '', { uid: 5, gid: 6 })]);
    assert.deepEqual(buildLayerImage(indexOfTar(tar, 3000)).rootOwner, { uid: 5, gid: 6 });
  });

  it('takes a layer with no entries and no spans', () => {
    const image = buildLayerImage({ ...indexOfTar(fakeTar([]), 4096), entries: [], spans: [] });
    assert.equal(image.imageSize, 4096);
    assert.equal(parseSpanMap(image.map).spansOf(0, 10_000), undefined);
  });

  it('refuses an index that contradicts itself', () => {
    const index = indexOfTar(TAR, 3000);
    const [first] = index.entries;
    assert.ok(first);
    refuses({ ...index, blobSize: 100 }, 'malformed');
    refuses({ ...index, prioritySpans: 100 }, 'malformed');
    refuses({ ...index, spans: index.spans.slice(1) }, 'malformed');
    refuses(withSpan(index, 1, { streamLength: 2999 }), 'malformed');
    refuses(withSpan(index, 1, { streamLength: 2 ** 30 }), 'too-large');
    refuses(withSpan(index, 1, { pieces: [] }), 'malformed');
    refuses(withSpan(index, 1, { pieces: [{ length: 0, digest: sha256() }] }), 'malformed');
    refuses(withSpan(index, 1, { checkpoint: { bits: 1, packedWindow: Buffer.alloc(0) } }), 'malformed');
    const extents = [
      { fileOffset: 0, streamOffset: 512, length: 100 },
      { fileOffset: 50, streamOffset: 700, length: 10 },
    ];
    refuses({ ...index, entries: [fakeEntry('x', 'file', { size: 200, extents })] }, 'malformed');
    refuses({ ...index, entries: [fakeEntry('x', 'file', { size: 20, extents: extents.slice(0, 1) })] }, 'malformed');
    refuses({ ...index, entries: [fakeEntry('x', 'fifo', { size: 20 })] }, 'malformed');
    refuses({ ...index, entries: [fakeEntry('x', 'file', { size: 2 ** 43 })] }, 'too-large');
    refuses({ ...index, entries: [fakeEntry('x', 'file', { size: 1.5 })] }, 'malformed');
  });

  it('refuses owners, times and devices that Linux cannot have', () => {
    const index = { ...indexOfTar(fakeTar([]), 4096) };
    for (const fields of [
      { uid: -1 },
      { gid: 2 ** 32 - 1 },
      { uid: 0.5 },
      { mtimeNanoseconds: 1e9 },
      { mtimeSeconds: Number.NaN },
      { deviceMajor: 4096 },
      { deviceMinor: 2 ** 20 },
    ]) {
      refuses({ ...index, entries: [fakeEntry('x', 'character', fields)] }, 'malformed');
    }
  });

  it('bounds the metadata that shared xattrs blow up', () => {
    const xattrs = [[Buffer.from('user.x'), Buffer.alloc(60_000)]] as const;
    const entries = Array.from({ length: 9_000 }, (_, i) => fakeEntry(`${i}`, 'file', { xattrs }));
    refuses({ ...indexOfTar(fakeTar([]), 4096), entries }, 'too-large');
  });
});

describe('the span map', () => {
  it('covers each payload byte once and finds its span', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 9000 }), (spanBytes) => {
        const index = indexOfTar(TAR, spanBytes);
        const image = buildLayerImage(index);
        const map = parseSpanMap(image.map);
        let covered = 0;
        for (let span = 0; span < map.spanCount; span++) {
          let payload = 0;
          for (const { imageOffset, length } of map.extents(span)) {
            payload += length;
            assert.ok(imageOffset >= map.imageStart(span) && imageOffset + length <= map.imageEnd(span));
            assert.deepEqual(map.spansOf(imageOffset, 1), [span, span]);
            assert.equal(map.spansOf(imageOffset + length - 1, 1)?.[1], span);
          }
          assert.equal(payload, map.payloadLength(span));
          assert.deepEqual(
            map.pieces(span).map((piece) => Buffer.from(piece.digest).toString('hex')),
            index.spans[span]?.pieces.map((piece) => piece.digest.slice(7)),
          );
          assert.deepEqual(map.segments(span), index.spans[span]?.segments);
          covered += payload;
        }
        assert.equal(covered, 5000 + 4096 + 50 + 9000);
        assert.equal(map.spansOf(0, map.metadataSize), undefined);
        const all = map.spansOf(0, map.imageSize);
        assert.ok(all !== undefined && map.payloadLength(all[0]) > 0 && map.payloadLength(all[1]) > 0);
        // Behind the last file's last byte.
        assert.equal(map.spansOf(map.metadataSize + 16_384 + 9000, 3000), undefined);
      }),
      { numRuns: 60, examples: [[64], [512], [4096]] },
    );
  });

  it('can be served from its first part alone', () => {
    const { map: file } = buildLayerImage(indexOfTar(TAR, 1000));
    const bytes = spanTableBytes(file.subarray(0, SPAN_MAP_HEADER_BYTES));
    assert.ok(bytes < file.length);
    const table = parseSpanTable(file.subarray(0, bytes));
    const whole = parseSpanMap(file);
    for (let span = 0; span < whole.spanCount; span++) {
      assert.equal(table.imageStart(span), whole.imageStart(span));
      assert.equal(table.blobEnd(span), whole.blobEnd(span));
    }
    assert.deepEqual(table.spansOf(0, 1e9), whole.spansOf(0, 1e9));
  });

  it('tells which spans come only one after the other from the front of their frame', () => {
    const index: LayerIndex = { ...indexOfTar(TAR, 4096), format: 'zstd' };
    // The frame begins within the second span, the next one with the fifth.
    const frames = [undefined, 100, 100, 100, 900, 900];
    const spans = index.spans.map((span, i) => {
      const blobOffset = frames[i];
      if (blobOffset === undefined) return span;
      const inner = { blobOffset, blobLength: 0, skip: 0 };
      if (i !== 1) return { ...span, segments: [{ ...inner, length: span.streamLength }] };
      const before = { blobOffset: 90, blobLength: 10, skip: 0, length: 8 };
      return { ...span, segments: [before, { ...inner, length: span.streamLength - 8 }] };
    });
    const map = parseSpanMap(buildLayerImage({ ...index, blobSize: 100_000, spans }).map);
    const streams = Array.from({ length: 7 }, (_, span) => map.streamOf(span));
    assert.deepEqual(streams, [undefined, [1, 3], [1, 3], [1, 3], [4, 5], [4, 5], undefined]);
    assert.equal(map.blobStart(1), 90);
    assert.equal(map.blobStart(4), 900);
  });

  it('keeps checkpoints and their windows', () => {
    const window = Buffer.from(CONTENT.subarray(0, 3000));
    const index: LayerIndex = { ...indexOfTar(TAR, 4096), format: 'gzip' };
    const spans = index.spans.map((span, i) => ({
      ...span,
      checkpoint: packCheckpoint({ bits: i % 8, window: i === 0 ? Buffer.alloc(0) : window }),
    }));
    const map = parseSpanMap(buildLayerImage({ ...index, spans }).map);
    assert.deepEqual(map.checkpoint(0), { bits: 0, window: Buffer.alloc(0) });
    assert.deepEqual(map.checkpoint(3), { bits: 3, window });
    assert.equal(parseSpanMap(buildLayerImage(indexOfTar(TAR, 4096)).map).checkpoint(0), undefined);
  });

  it('is read at any alignment and refused when cut or changed', () => {
    const { map: file } = buildLayerImage(indexOfTar(TAR, 1000));
    const shifted = Buffer.concat([Buffer.alloc(3), file]).subarray(3);
    assert.deepEqual(parseSpanMap(shifted).extents(2), parseSpanMap(file).extents(2));
    assert.ok(verifySpanMap(file));
    fc.assert(
      fc.property(
        fc.nat(file.length - 1),
        fc.integer({ min: 1, max: 255 }),
        fc.nat(file.length),
        (at, flip, length) => {
          const changed = Buffer.from(file);
          changed[at] = (changed[at] ?? 0) ^ flip;
          if (at >= SPAN_MAP_HEADER_BYTES) assert.ok(!verifySpanMap(changed));
          for (const bytes of [changed, file.subarray(0, length)]) {
            try {
              const map = parseSpanMap(bytes);
              for (let span = 0; span < map.spanCount; span++) {
                for (const { imageOffset, length } of map.extents(span))
                  assert.ok(imageOffset + length <= map.imageSize);
                for (const { blobOffset, blobLength } of map.segments(span)) {
                  assert.ok(blobOffset + blobLength <= map.blobSize);
                }
                map.pieces(span);
                map.checkpoint(span);
              }
            } catch (error) {
              assert.ok(error instanceof LayerError, String(error));
            }
          }
        },
      ),
      { numRuns: 1000 },
    );
  });
});
