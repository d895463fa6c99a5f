import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';
import {
  directoryReply,
  IN_HEADER_BYTES,
  initReply,
  invalidateEntryNotice,
  readHeader,
  readInit,
  readInterrupt,
  readName,
  readRead,
  reply,
  resendNotice,
} from './fuse-protocol.ts';

function request(opcode: number, body: Buffer, unique = 1n): Buffer {
  const message = Buffer.alloc(IN_HEADER_BYTES);
  message.writeUInt32LE(IN_HEADER_BYTES + body.length, 0);
  message.writeUInt32LE(opcode, 4);
  message.writeBigUInt64LE(unique, 8);
  message.writeBigUInt64LE(1n, 16);
  return Buffer.concat([message, body]);
}

describe('the FUSE protocol', () => {
  it('answers a resent request with its unique as it came, bit 63 included', () => {
    const unique = (1n << 63n) | 77n;
    assert.equal(reply(request(3, Buffer.alloc(16), unique), 0).readBigUInt64LE(8), unique);
  });

  it('negotiates what it needs and nothing that the kernel does not offer', () => {
    const offer = Buffer.alloc(64);
    offer.writeUInt32LE(7, 0);
    offer.writeUInt32LE(45, 4);
    offer.writeUInt32LE(131_072, 8);
    offer.writeUInt32LE(0xffff_ffff, 12);
    offer.writeUInt32LE(0xffff_ffff, 16);
    const message = request(26, offer);
    const init = readInit(message);
    assert.ok(init);
    const all = initReply(message, init);
    assert.equal(all.length, 80);
    assert.equal(all.readUInt32LE(0), 80);
    assert.equal(all.readUInt32LE(16 + 12), (1 | (1 << 18) | (1 << 22) | (1 << 30)) >>> 0);
    assert.equal(all.readUInt32LE(16 + 32), 1 << 7);
    const none = initReply(message, { ...init, flags: 0, flags2: 0 });
    assert.equal(none.readUInt32LE(16 + 12), 0);
    assert.equal(none.readUInt32LE(16 + 32), 0);
  });

  it('gives as many folder entries as fit, and goes on where it stopped', () => {
    const entries = Array.from({ length: 40 }, (_, index) => ({
      name: `layer-${index}.img`,
      inode: BigInt(index + 2),
      folder: false,
    }));
    const names: string[] = [];
    for (let first = 0; ; ) {
      const message = directoryReply(request(28, Buffer.alloc(40)), entries, first, 200);
      assert.equal(message.readUInt32LE(0), message.length);
      assert.ok(message.length - 16 <= 200);
      if (message.length === 16) break;
      for (let at = 16; at < message.length; ) {
        const length = message.readUInt32LE(at + 16);
        names.push(message.toString('utf8', at + 24, at + 24 + length));
        first = Number(message.readBigUInt64LE(at + 8));
        at += (24 + length + 7) & ~7;
      }
    }
    assert.deepEqual(
      names,
      entries.map((entry) => entry.name),
    );
  });

  it('writes notices with unique 0', () => {
    assert.deepEqual([...resendNotice()], [16, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    const entry = invalidateEntryNotice(1n, 'a.img');
    assert.equal(entry.length, 16 + 16 + 6);
    assert.equal(entry.readUInt32LE(24), 5);
    assert.equal(entry.at(-1), 0);
  });

  it('takes a name only when it is one', () => {
    assert.equal(readName(request(1, Buffer.from('a.img\0'))), 'a.img');
    for (const bad of ['', '\0', 'a', 'a/b\0']) assert.equal(readName(request(1, Buffer.from(bad))), undefined);
  });

  it('refuses requests that are cut, too long or out of range', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 120 }), (bytes) => {
        const message = Buffer.from(bytes);
        const header = readHeader(message);
        if (header !== undefined) assert.equal(message.readUInt32LE(0), message.length);
        const read = readRead(message);
        if (read !== undefined) assert.ok(Number.isSafeInteger(read.offset) && read.size <= 1 << 20);
        readInit(message);
        readName(message);
        readInterrupt(message);
      }),
      { numRuns: 300 },
    );
  });
});
