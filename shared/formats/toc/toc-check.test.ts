import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { fakeEntry } from '#shared/layer/fake-layer.ts';
import type { LayerEntry } from '#shared/layer/layer-index.ts';
import { sha256 } from '#shared/digest/digest.ts';
import { TocCheck } from './toc-check.ts';

const A = Buffer.from('first chunk');
const B = Buffer.from('second');
const content = Buffer.concat([A, B]);

type Fields = Partial<LayerEntry>;
const file = (path: string, size: number, fields: Fields = {}): LayerEntry =>
  fakeEntry(path, 'file', { size, mode: 0o644, ...fields });

/** A table of one directory, one file in two chunks, and a file that ends in a hole. */
const listed: readonly LayerEntry[] = [
  fakeEntry('', 'directory', { mode: 0o755 }),
  fakeEntry('d', 'directory', { mode: 0o755 }),
  file('d/f', content.length, {
    extents: [
      { fileOffset: 0, streamOffset: 0, length: A.length },
      { fileOffset: A.length, streamOffset: A.length, length: B.length },
    ],
  }),
  file('hole', A.length + 100_000, {
    extents: [{ fileOffset: 0, streamOffset: content.length, length: A.length }],
  }),
];
const spans = [A, B, A].map((bytes) => ({
  streamLength: bytes.length,
  segments: [],
  pieces: [{ length: bytes.length, digest: sha256(bytes) }],
  checkpoint: undefined,
}));

type Passing = readonly [entry: LayerEntry, content: Buffer];
/** As a tar reader hands them on, in pieces of seven bytes; offsets are made up. */
function check(passing: readonly Passing[], entries = listed): string | undefined {
  const checked = new TocCheck({ entries, spans });
  let streamOffset = 0;
  for (const [entry, bytes] of passing) {
    streamOffset += 512;
    const start = streamOffset;
    const extents = bytes.length === 0 ? [] : [{ fileOffset: 0, streamOffset: start, length: bytes.length }];
    checked.entry({ ...entry, extents });
    for (let at = 0; at < bytes.length; at += 7) checked.payload(bytes.subarray(at, at + 7), start + at);
    streamOffset += bytes.length;
  }
  return checked.finish();
}

const [root, directory, two, hole] = listed as [LayerEntry, LayerEntry, LayerEntry, LayerEntry];
const zeros = Buffer.concat([A, Buffer.alloc(100_000)]);
const tar: readonly Passing[] = [
  [root, Buffer.alloc(0)],
  [directory, Buffer.alloc(0)],
  [two, content],
  [hole, zeros],
];
const instead = (at: number, ...others: readonly Passing[]): readonly Passing[] => tar.toSpliced(at, 1, ...others);

describe('a table of contents', () => {
  test('agrees with its tar, whether that has the root, holes, or what lazy formats add, or not', () => {
    assert.equal(check(tar), undefined);
    assert.equal(check(tar.slice(1)), undefined);
    assert.equal(check(instead(3, [hole, A])), undefined);
    const added: Passing = [file('stargz.index.json', 5), Buffer.from('12345')];
    assert.equal(check([[file('.no.prefetch.landmark', 1), Buffer.from('\x0f')], ...tar, added]), undefined);
    assert.equal(check(instead(2, [{ ...two, mtimeNanoseconds: 5 }, content])), undefined);
  });

  test('contradicts a tar with other names, or in another order', () => {
    assert.match(check(instead(2, [file('d/g', content.length), content])) ?? '', /^"d\/g": .*"d\/f" in its place/);
    assert.match(check([...tar.slice(0, 2), tar[3] ?? [hole, A], tar[2] ?? [two, A]]) ?? '', /in its place/);
    assert.match(check([...tar, [file('more', 0), Buffer.alloc(0)]]) ?? '', /^"more": the table has nothing/);
    assert.match(check(tar.slice(0, 3)) ?? '', /^"hole": it is not in the tar/);
  });

  test('contradicts a tar with other attributes', () => {
    const others: readonly [Fields, RegExp][] = [
      [{ mode: 0o4755 }, /its mode is 4755, the table says 644/],
      [{ uid: 1000 }, /uid/],
      [{ size: content.length + 1 }, /size/],
      [{ mtimeSeconds: two.mtimeSeconds + 10 }, /time/],
      [{ type: 'fifo' }, /fifo/],
      [{ xattrs: [[Buffer.from('security.capability'), Buffer.from('all')]] }, /xattrs/],
    ];
    for (const [fields, expected] of others)
      assert.match(check(instead(2, [{ ...two, ...fields }, content])) ?? '', expected);
    assert.match(check(instead(0, [{ ...root, mode: 0o700 }, Buffer.alloc(0)])) ?? '', /mode/);
    const link = fakeEntry('l', 'symlink', { linkName: 'd/f' });
    const evil = fakeEntry('l', 'symlink', { linkName: '/etc/shadow' });
    assert.equal(check([...tar, [link, Buffer.alloc(0)]], [...listed, link]), undefined);
    assert.match(check([...tar, [link, Buffer.alloc(0)]], [...listed, evil]) ?? '', /target/);
  });

  test('contradicts a tar with other content, or with content in a hole', () => {
    const other = Buffer.from(content);
    other[other.length - 1] = 0;
    assert.match(check(instead(2, [two, other])) ?? '', /its content at 11 has the digest/);
    const filled = Buffer.from(zeros);
    filled[90_000] = 1;
    assert.match(check(instead(3, [hole, filled])) ?? '', /content where the table has a hole/);
  });
});
