import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';
import { fakeEntry, fakeMember, fakeTar } from '#shared/layer/fake-layer.ts';
import { type LayerEntry, LayerError, type LayerErrorCode } from '#shared/layer/layer-index.ts';
import { TarReader } from './tar-reader.ts';
import { TAR_END, tarHeader, tarPadding } from './tar-writer.ts';

interface Read {
  readonly entries: LayerEntry[];
  /** What passed as payload, and where. */
  readonly payload: Buffer;
  readonly offsets: number[];
}

function read(tar: Buffer, cuts: readonly number[] = []): Read {
  const entries: LayerEntry[] = [];
  const runs: Buffer[] = [];
  const offsets: number[] = [];
  const reader = new TarReader({
    entry: (entry) => entries.push(entry),
    payload: (bytes, offset) => {
      assert.deepEqual(Buffer.from(bytes), tar.subarray(offset, offset + bytes.length));
      runs.push(Buffer.from(bytes));
      offsets.push(offset);
    },
  });
  let at = 0;
  for (const cut of [...cuts, tar.length]) {
    reader.push(tar.subarray(at, cut));
    at = cut;
  }
  reader.end();
  assert.equal(reader.streamOffset, tar.length);
  return { entries, payload: Buffer.concat(runs), offsets };
}

function refuses(tar: Buffer, code: LayerErrorCode): void {
  assert.throws(
    () => read(tar),
    (error) => error instanceof LayerError && error.code === code,
  );
}

/** A header changed by hand, its checksum made right again. */
function patched(header: Buffer, change: (block: Buffer) => void): Buffer {
  const block = Buffer.from(header.subarray(header.length - 512));
  change(block);
  block.fill(0x20, 148, 156);
  let sum = 0;
  for (const byte of block) sum += byte;
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return Buffer.concat([header.subarray(0, header.length - 512), block]);
}

function meta(type: string, body: Buffer | string): Buffer {
  const bytes = Buffer.from(body);
  const header = tarHeader(fakeEntry('meta', 'file', { size: bytes.length }));
  return Buffer.concat([patched(header, (block) => block.write(type, 156)), bytes, tarPadding(bytes.length)]);
}

function record(key: string, value: Buffer | string): Buffer {
  const rest = Buffer.concat([Buffer.from(` ${key}=`), Buffer.from(value), Buffer.from('\n')]);
  let length = rest.length + 1;
  while (String(length).length + rest.length !== length) length++;
  return Buffer.concat([Buffer.from(String(length)), rest]);
}

const SAMPLE = fakeTar([
  fakeMember('', 'directory'),
  fakeMember('dir', 'directory', '', {
    mode: 0o1777,
    xattrs: [[Buffer.from('user.a'), Buffer.from([0, 255, 10, 61])]],
  }),
  fakeMember('dir/file', 'file', 'content', { uid: 5_000_000, mtimeNanoseconds: 5_000_000 }),
  fakeMember(Buffer.from([0x64, 0xff, 0xfe]), 'file', Buffer.alloc(1500, 7)),
  fakeMember('x'.repeat(255), 'symlink', '', { linkName: 'y'.repeat(300), mode: 0o777 }),
  fakeMember('hard', 'hardlink', '', { linkName: 'dir/file' }),
  fakeMember('null', 'character', '', {
    deviceMajor: 1,
    deviceMinor: 3,
    mtimeSeconds: -3,
    mtimeNanoseconds: 250_000_000,
  }),
  fakeMember('empty'),
]);

describe('TarReader', () => {
  it('gives back every attribute that the writer put in', () => {
    const { entries, payload } = read(SAMPLE);
    const [root, dir, file, binary, link, hard, device, empty] = entries;
    assert.equal(entries.length, 8);
    assert.equal(root?.path.length, 0);
    assert.deepEqual(dir?.xattrs, [[Buffer.from('user.a'), Buffer.from([0, 255, 10, 61])]]);
    assert.equal(dir?.mode, 0o1777);
    assert.deepEqual([file?.uid, file?.mtimeNanoseconds, file?.size], [5_000_000, 5_000_000, 7]);
    assert.deepEqual(binary?.path, Buffer.from([0x64, 0xff, 0xfe]));
    assert.equal(link?.linkName.toString(), 'y'.repeat(300));
    assert.equal(hard?.linkName.toString(), 'dir/file');
    assert.deepEqual([device?.deviceMajor, device?.deviceMinor], [1, 3]);
    assert.deepEqual([device?.mtimeSeconds, device?.mtimeNanoseconds], [-3, 250_000_000]);
    assert.deepEqual([empty?.size, empty?.extents], [0, []]);
    assert.deepEqual(payload, Buffer.concat([Buffer.from('content'), Buffer.alloc(1500, 7)]));
    const [extent] = file?.extents ?? [];
    assert.equal(SAMPLE.toString('latin1', extent?.streamOffset, (extent?.streamOffset ?? 0) + 7), 'content');
  });

  it('reads the same from any cut of the stream', () => {
    const { entries, payload } = read(SAMPLE);
    const everyByte = read(
      SAMPLE,
      Array.from({ length: SAMPLE.length - 1 }, (_, i) => i + 1),
    );
    assert.deepEqual(everyByte.entries, entries);
    assert.deepEqual(everyByte.payload, payload);
    fc.assert(
      fc.property(fc.array(fc.nat(SAMPLE.length), { maxLength: 8 }), (cuts) => {
        const again = read(
          SAMPLE,
          cuts.sort((a, b) => a - b),
        );
        assert.deepEqual(again.entries, entries);
        assert.deepEqual(again.payload, payload);
      }),
      { numRuns: 100 },
    );
  });

  it('refuses what was cut or changed, or reads it as another archive, but never fails otherwise', () => {
    fc.assert(
      fc.property(fc.nat(SAMPLE.length - 1), fc.nat(255), fc.nat(SAMPLE.length), (at, byte, length) => {
        const changed = Buffer.from(SAMPLE.subarray(0, length));
        if (at < length) changed[at] = byte;
        try {
          read(changed);
        } catch (error) {
          assert.ok(error instanceof LayerError, String(error));
        }
      }),
      { numRuns: 2000 },
    );
    refuses(SAMPLE.subarray(0, 2500), 'malformed');
  });

  it('refuses a wrong checksum', () => {
    const tar = Buffer.from(SAMPLE);
    tar[0] = 0x41;
    refuses(tar, 'malformed');
  });

  it('cleans paths and refuses those that leave the root', () => {
    const name = (text: string) => patched(tarHeader(fakeEntry('x')), (block) => block.write(`${text}\0`, 0));
    const tar = Buffer.concat([name('/a//./b/'), name('./c'), name('d/../e'), TAR_END]);
    assert.deepEqual(
      read(tar).entries.map(({ path }) => path.toString()),
      ['a/b', 'c', 'e'],
    );
    refuses(Buffer.concat([name('a/../../b'), TAR_END]), 'escapes');
    refuses(Buffer.concat([name('/..'), TAR_END]), 'escapes');
    const link = patched(tarHeader(fakeEntry('x', 'hardlink')), (block) => block.write('../../etc/passwd', 157));
    refuses(Buffer.concat([link, TAR_END]), 'escapes');
  });

  it('reads GNU long names, base-256 numbers and ancient headers', () => {
    const size = patched(tarHeader(fakeEntry('short', 'file', { size: 3 })), (block) => {
      block.write('ustar  \0', 257, 'latin1');
      block.fill(0, 108, 116);
      block[108] = 0x80;
      block.writeUInt32BE(3_000_000_000, 112);
      block.fill(0xff, 136, 148);
      block.writeInt32BE(-5, 144);
      block.fill(0, 345, 512);
    });
    const ancient = patched(tarHeader(fakeEntry('old/', 'directory')), (block) => {
      block.fill(0, 257, 512);
      block[156] = 0;
    });
    const long = 'long/'.repeat(60);
    const tar = Buffer.concat([
      meta('L', `${long}name\0`),
      meta('K', 'some/target\0'),
      size,
      Buffer.from('abc'),
      tarPadding(3),
      ancient,
      TAR_END,
    ]);
    const { entries } = read(tar);
    assert.equal(entries[0]?.path.toString(), `${long}name`);
    assert.deepEqual([entries[0]?.uid, entries[0]?.mtimeSeconds, entries[0]?.size], [3_000_000_000, -5, 3]);
    assert.deepEqual([entries[1]?.path.toString(), entries[1]?.type], ['old', 'directory']);
  });

  it('joins the prefix of a ustar name', () => {
    const header = patched(tarHeader(fakeEntry('name')), (block) => block.write('some/prefix', 345));
    assert.equal(read(Buffer.concat([header, TAR_END])).entries[0]?.path.toString(), 'some/prefix/name');
  });

  it('reads sparse files of all forms', () => {
    const data = Buffer.from('AAAABB');
    const body = Buffer.concat([data, tarPadding(data.length)]);
    const stored = (size: number) => tarHeader(fakeEntry('s', 'file', { size }));
    const gnu = patched(stored(6), (block) => {
      block.write('ustar  \0', 257, 'latin1');
      block.write('S', 156);
      block.fill(0, 345, 512);
      block.write('00000001000\0', 386);
      block.write('00000000004\0', 398);
      block[482] = 1;
      block.write('00000010000\0', 483);
    });
    const extension = Buffer.alloc(512);
    extension.write('00000002000\0', 0);
    extension.write('00000000002\0', 12);
    extension.write('00000010000\0', 24);
    extension.write('00000000000\0', 36);
    const map = Buffer.concat([Buffer.from('2\n512\n4\n1024\n2\n'), Buffer.alloc(512 - 15)]);
    const forms = [
      Buffer.concat([gnu, extension, body]),
      Buffer.concat([
        meta(
          'x',
          Buffer.concat([
            record('GNU.sparse.size', '4096'),
            record('GNU.sparse.numblocks', '2'),
            record('GNU.sparse.offset', '512'),
            record('GNU.sparse.numbytes', '4'),
            record('GNU.sparse.offset', '1024'),
            record('GNU.sparse.numbytes', '2'),
          ]),
        ),
        stored(6),
        body,
      ]),
      Buffer.concat([
        meta(
          'x',
          Buffer.concat([
            record('GNU.sparse.size', '4096'),
            record('GNU.sparse.name', 's'),
            record('GNU.sparse.map', '512,4,1024,2'),
          ]),
        ),
        stored(6),
        body,
      ]),
      Buffer.concat([
        meta(
          'x',
          Buffer.concat([
            record('GNU.sparse.major', '1'),
            record('GNU.sparse.minor', '0'),
            record('GNU.sparse.name', 's'),
            record('GNU.sparse.realsize', '4096'),
          ]),
        ),
        stored(512 + 6),
        map,
        body,
      ]),
    ];
    for (const form of forms) {
      const tar = Buffer.concat([form, tarHeader(fakeEntry('after')), TAR_END]);
      const { entries, payload } = read(tar);
      const start = form.length - 512;
      assert.equal(entries[0]?.path.toString(), 's');
      assert.equal(entries[0]?.size, 4096);
      assert.deepEqual(entries[0]?.extents, [
        { fileOffset: 512, streamOffset: start, length: 4 },
        { fileOffset: 1024, streamOffset: start + 4, length: 2 },
      ]);
      assert.deepEqual(payload, data);
      assert.equal(entries[1]?.path.toString(), 'after');
    }
  });

  it('refuses sparse maps that overlap or do not match what is stored', () => {
    for (const map of ['512,4,514,2', '4090,6,8000,0,1,1', '0,7', '4095,6']) {
      const records = Buffer.concat([record('GNU.sparse.size', '4096'), record('GNU.sparse.map', map)]);
      refuses(
        Buffer.concat([meta('x', records), tarHeader(fakeEntry('s', 'file', { size: 6 })), TAR_END]),
        'malformed',
      );
    }
  });

  it('ends at two zero blocks and ignores what follows, but not one zero block with data after it', () => {
    const one = tarHeader(fakeEntry('a'));
    assert.equal(read(Buffer.concat([one, TAR_END, Buffer.from('junk'), one])).entries.length, 1);
    assert.equal(read(one).entries.length, 1);
    refuses(Buffer.concat([one, Buffer.alloc(512), one]), 'malformed');
  });

  it('does not let a global PAX header change entries, as containerd does not', () => {
    const tar = Buffer.concat([meta('g', record('path', 'elsewhere')), tarHeader(fakeEntry('a')), TAR_END]);
    assert.equal(read(tar).entries[0]?.path.toString(), 'a');
  });

  it('refuses types it does not know and headers beyond their bound', () => {
    const multi = patched(tarHeader(fakeEntry('a')), (block) => block.write('M', 156));
    refuses(Buffer.concat([multi, TAR_END]), 'unsupported');
    const huge = patched(tarHeader(fakeEntry('a', 'file', { size: 2 ** 30 })), (block) => block.write('x', 156));
    refuses(Buffer.concat([huge, TAR_END]), 'too-large');
  });
});
