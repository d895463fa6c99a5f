import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';
import { isWithin, parseMountTable } from './mount-table.ts';

describe('the mount table', () => {
  it('reads optional fields, spaces and newlines in names', () => {
    const text =
      '36 35 98:0 /mnt1 /mnt\\0402\\012x rw,noatime master:1 propagate_from:2 - erofs /var/a\\134b.img ro,user_xattr\n' +
      '37 35 0:45 / /run/k rw - fuse.kindling kindling rw,user_id=0\n';
    assert.deepEqual(parseMountTable(text), [
      {
        id: 36,
        parentId: 35,
        device: '98:0',
        root: '/mnt1',
        target: '/mnt 2\nx',
        options: 'rw,noatime',
        type: 'erofs',
        source: '/var/a\\b.img',
        superOptions: 'ro,user_xattr',
      },
      {
        id: 37,
        parentId: 35,
        device: '0:45',
        root: '/',
        target: '/run/k',
        options: 'rw',
        type: 'fuse.kindling',
        source: 'kindling',
        superOptions: 'rw,user_id=0',
      },
    ]);
  });

  it('takes any text without failing', () => {
    fc.assert(
      fc.property(fc.string(), (text) => Array.isArray(parseMountTable(text))),
      { numRuns: 200 },
    );
  });

  it('tells a folder from one whose name begins the same', () => {
    assert.ok(isWithin('/a/b', '/a'));
    assert.ok(isWithin('/a', '/a'));
    assert.ok(isWithin('/a', '/'));
    assert.ok(!isWithin('/ab', '/a'));
  });
});
