import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { describe, test } from 'node:test';
import { deflateRawSync, gzipSync, constants, zstdCompressSync } from 'node:zlib';
import { type Digest, sha256 } from '#shared/digest/digest.ts';
import { isSeekable } from '#shared/formats/build-index.ts';
import { codingOfIndex } from '#shared/formats/index-coding.ts';
import { SpanDecoder } from '#shared/formats/span-decoder.ts';
import { fakeMember, fakeTar } from '#shared/layer/fake-layer.ts';
import { LayerError, type LayerEntry, type LayerIndex } from '#shared/layer/layer-index.ts';
import { buildLayerImage } from '#shared/layer/layer-image.ts';
import { decodeLayerIndex, encodeLayerIndex } from '#shared/layer/index-codec.ts';
import { parseSpanMap } from '#shared/layer/span-map-file.ts';
import { AnyWalker } from './any-walker.ts';
import { StreamDigester } from './stream-digester.ts';
import { StreamIndexer, type StreamIndexerOptions } from './stream-indexer.ts';
import { WALK_BUFFER_BYTES } from './stream-walker.ts';

/** Words: compresses like a layer does, with references everywhere; the same in every run. */
function text(length: number, seed: number): Buffer {
  const words = Array.from({ length: 500 }, (_, at) =>
    createHash('md5')
      .update(`word ${at}`)
      .digest('base64')
      .slice(0, 3 + (at % 9)),
  );
  const parts: string[] = [];
  let state = seed;
  for (let done = 0; done < length; ) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    const word = words[(state >>> 8) % words.length] ?? '';
    parts.push(word);
    done += word.length + 1;
  }
  return Buffer.from(parts.join(' ')).subarray(0, length);
}

function tarOf(files: readonly (readonly [string, Buffer])[]): Buffer {
  return fakeTar(files.map(([path, content]) => fakeMember(path, 'file', content)));
}

const noise = createHash('shake256', { outputLength: 600_000 }).update('noise').digest();
const files = [
  ['empty', Buffer.alloc(0)],
  ['text', text(1_900_000, 1)],
  ['zeros', Buffer.alloc(1_700_000)],
  ['noise', noise],
  ...Array.from({ length: 150 }, (_, at) => [`small/${at}`, text(1000 + at * 80, at + 7)] as const),
  ['more', text(1_300_000, 3)],
] as const;
const tar = tarOf(files);
const payload = Buffer.concat(files.map(([, content]) => content));

function cutUp(bytes: Buffer, size: number): Buffer[] {
  const parts: Buffer[] = [];
  for (let at = 0; at < bytes.length; at += size) parts.push(bytes.subarray(at, at + size));
  return parts;
}

/** As `pigz` writes: every block a byte-aligned piece of one stream. */
function pigzLike(bytes: Buffer): Buffer {
  const parts = cutUp(bytes, 128 * 1024);
  const deflated = parts.map((part, at) =>
    deflateRawSync(part, {
      finishFlush: at === parts.length - 1 ? constants.Z_FINISH : constants.Z_SYNC_FLUSH,
      ...(at === 0 ? {} : { dictionary: bytes.subarray(Math.max(0, at * 128 * 1024 - 32_768), at * 128 * 1024) }),
    }),
  );
  const whole = gzipSync(bytes);
  return Buffer.concat([whole.subarray(0, 10), ...deflated, whole.subarray(-8)]);
}

async function index(blob: Buffer, options: Partial<StreamIndexerOptions> = {}, chunk = 100_000): Promise<LayerIndex> {
  await using indexer = new StreamIndexer({ layer: sha256(blob), blobSize: blob.length, threads: 'one', ...options });
  for (const part of cutUp(blob, chunk)) await indexer.push(part);
  return await indexer.finish();
}

/** Without threads, by a given inflater. */
function walk(blob: Buffer, inflater: 'native' | 'pako', chunk: number): ReturnType<StreamDigester['end']> {
  const digester = new StreamDigester();
  const buffer = Buffer.alloc(WALK_BUFFER_BYTES);
  using walker = new AnyWalker(
    {
      buffer: () => buffer,
      data: (bytes, length) => digester.data(bytes.subarray(0, length)),
      cut: (cut) => digester.cut(cut),
      amend: (blobOffset, blobLength) => digester.amend(blobOffset, blobLength),
    },
    blob.length,
    inflater,
  );
  for (const part of cutUp(blob, chunk)) walker.push(part);
  walker.end();
  return digester.end();
}

function decodeAll(found: LayerIndex, blob: Buffer): Buffer {
  const coding = codingOfIndex(found);
  using decoder = new SpanDecoder();
  const spans = found.spans.map((_, span) =>
    Buffer.from(
      decoder.decode(coding, span, {
        form: 'compressed',
        bytes: blob.subarray(coding.blobStart(span), coding.blobEnd(span)),
      }),
    ),
  );
  return Buffer.concat(spans);
}

const blobs: Readonly<Record<string, Buffer>> = {
  'gzip level 1': gzipSync(tar, { level: 1 }),
  'gzip level 6': gzipSync(tar, { level: 6 }),
  'gzip level 9': gzipSync(tar, { level: 9 }),
  'gzip stored': gzipSync(tar, { level: 0 }),
  'gzip fixed codes': gzipSync(tar, { strategy: constants.Z_FIXED }),
  'gzip members': Buffer.concat(cutUp(tar, 300_000).map((part) => gzipSync(part))),
  'gzip small members': Buffer.concat(cutUp(tar, 5000).map((part) => gzipSync(part))),
  'gzip large and small members': Buffer.concat([
    gzipSync(tar.subarray(0, 3_000_000)),
    gzipSync(Buffer.alloc(0)),
    gzipSync(tar.subarray(3_000_000, 3_000_100)),
    gzipSync(tar.subarray(3_000_100)),
    Buffer.alloc(1000),
  ]),
  'gzip as pigz writes it': pigzLike(tar),
  'zstd of one frame': zstdCompressSync(tar),
  'zstd of frames': Buffer.concat(cutUp(tar, 700_000).map((part) => zstdCompressSync(part))),
  'zstd of a large frame between small ones': Buffer.concat([
    zstdCompressSync(tar.subarray(0, 10_000)),
    zstdCompressSync(tar.subarray(10_000, 5_900_000)),
    Buffer.from('502a4d1803000000616263', 'hex'),
    zstdCompressSync(tar.subarray(5_900_000)),
  ]),
  'plain tar': tar,
};

describe('indexing a stream', () => {
  for (const [name, blob] of Object.entries(blobs)) {
    test(`${name}: every span decodes from its own range of the blob to what the tar holds`, async () => {
      const found = await index(blob, { diffId: sha256(tar) });
      assert.equal(found.entries.length, files.length);
      assert.equal(
        found.spans.reduce((sum, span) => sum + span.streamLength, 0),
        tar.length,
      );
      assert.ok(found.spans.length > 1, `${found.spans.length} spans`);
      assert.ok(decodeAll(found, blob).equals(payload));
      const kept = encodeLayerIndex(found);
      assert.deepEqual(decodeLayerIndex(kept, found.layer), found);
      assert.ok(kept.length < Math.max(20_000, blob.length * 0.01), `an index of ${kept.length} bytes`);
      const map = parseSpanMap(buildLayerImage(found).map);
      using decoder = new SpanDecoder();
      const bytes = blob.subarray(map.blobStart(1), map.blobEnd(1));
      assert.equal(decoder.decode(map, 1, { form: 'compressed', bytes }).length, map.payloadLength(1));
    });
  }

  test('a large zstd frame has spans that only peers can give', async () => {
    const large = tarOf([['zeros', Buffer.alloc(36_000_000)]]);
    const blob = zstdCompressSync(large);
    const found = await index(blob);
    assert.equal(isSeekable(found), false);
    assert.equal(isSeekable(await index(blobs['zstd of frames'] ?? blob)), true);
    assert.deepEqual(decodeLayerIndex(encodeLayerIndex(found), found.layer), found);
    const map = parseSpanMap(buildLayerImage(found).map);
    using decoder = new SpanDecoder();
    const content = Buffer.alloc(map.payloadLength(2));
    assert.equal(decoder.decode(map, 2, { form: 'payload', bytes: content }).length, content.length);
    assert.throws(() => decoder.decode(map, 2, { form: 'compressed', bytes: Buffer.alloc(0) }), { code: 'malformed' });
  });

  test('an index does not depend on how the blob arrives, nor on who inflates', () => {
    const small = tarOf([
      ['text', text(2_600_000, 5)],
      ['noise', noise],
    ]);
    for (const blob of [gzipSync(small), pigzLike(small)]) {
      const whole = walk(blob, 'native', blob.length);
      assert.ok(whole.spans.some((span) => (span.checkpoint?.packedWindow.length ?? 0) > 0));
      assert.deepEqual(walk(blob, 'native', 997), whole);
      assert.deepEqual(walk(blob, 'pako', 65_536), whole);
    }
  });

  test('two threads find what one finds, and hand on the payload in order', async () => {
    const blob = blobs['gzip level 6'] ?? Buffer.alloc(0);
    // Above the size that gets a thread.
    const large = Buffer.concat([blob, blob, blob, Buffer.alloc(4 * 1024 * 1024)]);
    const passed = createHash('sha256');
    let at = 0;
    const sink = {
      payload: (bytes: Uint8Array, payloadOffset: number) => {
        assert.equal(payloadOffset, at);
        at += bytes.length;
        passed.update(bytes);
      },
    };
    const two = await index(large, { threads: 'two', payload: sink });
    assert.deepEqual(two, await index(large, { threads: 'one' }));
    assert.equal(`sha256:${passed.digest('hex')}`, sha256(payload));
  });

  test('most of a window is left out', async () => {
    const found = await index(blobs['gzip level 6'] ?? Buffer.alloc(0));
    const windows = found.spans.flatMap((span) =>
      span.checkpoint === undefined ? [] : [span.checkpoint.packedWindow],
    );
    const packed = windows.reduce((sum, window) => sum + window.length, 0);
    assert.ok(packed < windows.length * 20_000, `${packed} bytes for ${windows.length} windows`);
  });
});

describe('a stream that is refused', () => {
  const blob = gzipSync(tar.subarray(0, 400_000));
  const refused = (bytes: Buffer, code: string, options: Partial<StreamIndexerOptions> = {}): Promise<void> =>
    assert.rejects(index(bytes, options), (error: unknown) => {
      assert.ok(error instanceof LayerError, String(error));
      assert.equal(error.code, code, error.message);
      assert.match(error.message, /^Refused layer sha256:/);
      return true;
    });

  test('another blob than was asked for', () =>
    refused(blobs['gzip level 6'] ?? blob, 'digest-mismatch', { layer: sha256(blob) }));
  test('another tar than the image says', () =>
    refused(blobs['gzip level 6'] ?? blob, 'digest-mismatch', { diffId: sha256(blob) }));
  test('a blob that is longer than its descriptor says', () =>
    refused(blob, 'malformed', { blobSize: blob.length - 1 }));
  test('a blob that is shorter than its descriptor says', () =>
    refused(blob, 'malformed', { blobSize: blob.length + 1 }));
  test('a blob of three bytes', () => refused(Buffer.from([1, 2, 3]), 'malformed'));
  test('gzip that ends early', () => refused(blob.subarray(0, -20), 'malformed'));
  test('gzip that ends in its trailer', () => refused(blob.subarray(0, -4), 'malformed'));
  test('gzip with a wrong checksum', () => {
    const wrong = Buffer.from(blob);
    wrong[wrong.length - 6] = (wrong.at(-6) ?? 0) ^ 1;
    return refused(wrong, 'malformed');
  });
  test('gzip with garbage behind it', () =>
    refused(Buffer.concat([gzipSync(tar), Buffer.from('garbage')]), 'malformed'));
  test('zstd that ends early', () => refused(zstdCompressSync(tar).subarray(0, -20), 'malformed'));
  test('no tar inside', () => refused(gzipSync(noise), 'malformed'));
  test('a tar that ends early', () => refused(blob, 'malformed'));

  test('a thread that refuses leaves nothing behind', async () => {
    const large = Buffer.concat([
      gzipSync(tar),
      createHash('shake256', { outputLength: 5_000_000 }).update('x').digest(),
    ]);
    await refused(large, 'malformed', { threads: 'two' });
  });

  test('any change of a byte is refused in the end, and nothing else than refused', async () => {
    const small = gzipSync(tarOf([['text', text(30_000, 9)]]));
    const layer: Digest = sha256(small);
    let state = 1;
    for (let round = 0; round < 200; round += 1) {
      state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
      const changed = Buffer.from(small);
      const at = state % changed.length;
      changed[at] = (changed[at] ?? 0) ^ (1 + ((state >>> 16) % 255));
      await assert.rejects(index(changed, { layer, blobSize: small.length }), { name: 'LayerError' });
    }
  });
});

test('a span that was tampered with, cut short or swapped is not decoded', async () => {
  const blob = blobs['gzip level 6'] ?? Buffer.alloc(0);
  const found = await index(blob);
  const coding = codingOfIndex(found);
  using decoder = new SpanDecoder();
  const range = (span: number): Buffer => Buffer.from(blob.subarray(coding.blobStart(span), coding.blobEnd(span)));
  const refused = { name: 'LayerError' };
  for (let round = 0; round < 100; round += 1) {
    const bytes = range(1);
    const at = (round * 7919) % (bytes.length - 10);
    bytes[at] = (bytes[at] ?? 0) ^ 0x40;
    try {
      const decoded = decoder.decode(coding, 1, { form: 'compressed', bytes });
      // The bits before the checkpoint in its first byte mean nothing.
      assert.ok(at === 0 && decoded.length === coding.payloadLength(1));
    } catch (error) {
      assert.ok(error instanceof LayerError, String(error));
    }
  }
  assert.throws(() => decoder.decode(coding, 1, { form: 'compressed', bytes: range(1).subarray(1) }), refused);
  assert.throws(() => decoder.decode(coding, 1, { form: 'compressed', bytes: range(2) }), refused);
  assert.throws(
    () => decoder.decode(coding, 1, { form: 'payload', bytes: Buffer.alloc(coding.payloadLength(1)) }),
    refused,
  );
  assert.ok(decoder.decode(coding, 1, { form: 'compressed', bytes: range(1) }).length > 0);
});

test('entries come as the tar has them', async () => {
  const found = await index(gzipSync(tar));
  const paths = found.entries.map(({ path }: LayerEntry) => path.toString());
  assert.deepEqual(
    paths,
    files.map(([path]) => path),
  );
});
