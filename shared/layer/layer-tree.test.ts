import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';
import { fakeEntry } from './fake-layer.ts';
import { type LayerEntry, LayerError, type LayerErrorCode } from './layer-index.ts';
import { isDirectory, type LayerInode } from './layer-inode.ts';
import { buildLayerTree } from './layer-tree.ts';

const dir = (path: string) => fakeEntry(path, 'directory');
const file = (path: string, size = 1) => fakeEntry(path, 'file', { size });
const link = (path: string, linkName: string) => fakeEntry(path, 'hardlink', { linkName });
const symlink = (path: string, linkName: string) => fakeEntry(path, 'symlink', { linkName });

/** One word a path: its type, with what is special about it. */
function shape(entries: readonly LayerEntry[]): Record<string, string> {
  const found: Record<string, string> = {};
  const visit = (inode: LayerInode, path: string): void => {
    const marks = [inode.whiteout ? 'whiteout' : inode.type];
    if (inode.implied) marks.push('implied');
    if (inode.opaque) marks.push('opaque');
    if (inode.type === 'file') marks.push(`${inode.entryNumber}`, `x${inode.links}`);
    found[path] = marks.join(' ');
    if (isDirectory(inode)) for (const [name, child] of inode.children) visit(child, `${path}/${name}`);
  };
  visit(buildLayerTree(entries).root, '');
  return found;
}

function refuses(entries: readonly LayerEntry[], code: LayerErrorCode): void {
  assert.throws(
    () => buildLayerTree(entries),
    (error) => error instanceof LayerError && error.code === code,
  );
}

describe('buildLayerTree', () => {
  it('makes missing parents and tells which, parents first', () => {
    const entries = [file('a/b/c'), dir('d'), file('d/e/f'), dir('a/b/x')];
    assert.deepEqual(
      buildLayerTree(entries).impliedDirectories.map((path) => path.toString()),
      ['a', 'a/b', 'd/e'],
    );
    assert.equal(shape(entries)['/a'], 'directory implied');
    assert.equal(shape([...entries, dir('a')])['/a'], 'directory');
  });

  it('counts the last entry of a path', () => {
    const entries = [file('f'), dir('d'), file('d/kept'), dir('d'), file('x/gone'), file('x'), symlink('f', 'd')];
    assert.deepEqual(shape(entries), {
      '': 'directory implied',
      '/d': 'directory',
      '/d/kept': 'file 2 x1',
      '/x': 'file 5 x1',
      '/f': 'symlink',
    });
  });

  it('forgets the parent that it remembers when another entry takes its place', () => {
    const entries = [dir('a/b'), file('a/b/c'), symlink('a', 'z'), dir('z'), file('a/b/d')];
    assert.deepEqual(Object.keys(shape(entries)), ['', '/a', '/z', '/z/b', '/z/b/d']);
  });

  it('shares inodes between hard links, and drops them one by one', () => {
    const entries = [file('a'), link('d/b', 'a'), link('c', 'd/b'), file('a'), link('b', 'b-target'), file('c')];
    refuses(entries, 'malformed');
    const kept = entries.filter(({ path }) => path.toString() !== 'b');
    assert.equal(shape(kept)['/d/b'], 'file 0 x1');
    assert.equal(shape(kept)['/a'], 'file 3 x1');
    assert.equal(shape([file('a'), link('a', 'a')])['/a'], 'file 0 x1');
    refuses([dir('a'), link('b', 'a')], 'malformed');
    refuses([link('a', 'b'), file('b')], 'malformed');
  });

  it('turns whiteouts into devices and marks opaque directories', () => {
    const entries = [file('.wh.gone'), file('d/.wh..wh..opq'), dir('d'), file('.wh..wh.aufs'), file('.wh..wh.orph/x')];
    assert.deepEqual(shape(entries), { '': 'directory implied', '/gone': 'whiteout', '/d': 'directory opaque' });
    assert.equal(shape([file('.wh..wh..opq')])[''], 'directory implied opaque');
  });

  it('lets no whiteout hide what its own layer has', () => {
    assert.equal(shape([file('a'), file('.wh.a')])['/a'], 'file 0 x1');
    assert.equal(shape([file('.wh.a'), file('a')])['/a'], 'file 1 x1');
    assert.equal(shape([file('.wh.a'), file('a/b')])['/a'], 'directory implied opaque');
    assert.equal(shape([file('d/x'), file('.wh.d')])['/d'], 'directory implied');
  });

  it('resolves AUFS hard links to targets that are not shown', () => {
    const entries = [file('.wh..wh.plnk/1.2'), link('a', '.wh..wh.plnk/1.2'), link('b', '.wh..wh.plnk/1.2')];
    assert.deepEqual(shape(entries), { '': 'directory implied', '/a': 'file 0 x2', '/b': 'file 0 x2' });
  });

  it('hides the files of eStargz at the root only', () => {
    const names = ['.prefetch.landmark', '.no.prefetch.landmark', 'stargz.index.json'];
    assert.deepEqual(Object.keys(shape(names.map((name) => file(name)))), ['']);
    assert.equal(Object.keys(shape(names.map((name) => file(`d/${name}`)))).length, 5);
  });

  it('follows symlinked parents inside the layer, as containerd does', () => {
    const entries = [
      dir('usr/lib'),
      symlink('lib', 'usr/lib'),
      file('lib/x'),
      symlink('up', '/../../usr'),
      file('up/y'),
    ];
    const found = shape(entries);
    assert.equal(found['/usr/lib/x'], 'file 2 x1');
    assert.equal(found['/usr/y'], 'file 4 x1');
    assert.equal(shape([...entries, link('z', 'lib/x')])['/z'], 'file 2 x2');
    assert.equal(shape([symlink('a', 'not/there'), file('a/b')])['/not/there/b'], 'file 1 x1');
  });

  it('refuses cycles of symlinks, paths below files, and names that no file has', () => {
    refuses([symlink('a', 'b'), symlink('b', 'a'), file('a/c')], 'malformed');
    refuses([file('a'), file('a/b')], 'malformed');
    refuses([file('')], 'malformed');
    refuses([file('a//b')], 'malformed');
    refuses([file('./b')], 'malformed');
    refuses([file('a/../b')], 'escapes');
    refuses([file('..')], 'escapes');
    refuses([file('a\0b')], 'malformed');
    refuses([file('n'.repeat(256))], 'too-large');
    refuses([file(`${'d/'.repeat(300)}f`)], 'too-large');
    refuses([file('a/'.repeat(2100))], 'too-large');
  });

  it('bounds the directories that long paths imply', () => {
    const long = `${'n'.repeat(240)}/`;
    const entries = Array.from({ length: 2300 }, (_, i) => file(`${i}/${long.repeat(16)}f`));
    refuses(entries, 'too-large');
  });

  it('builds a tree or refuses with a LayerError, whatever the entries', () => {
    const name = fc.constantFrom('a', 'b', '.wh.a', '.wh..wh..opq', '.wh..wh.plnk', '..', '');
    const path = fc.array(name, { maxLength: 3 }).map((parts) => parts.join('/'));
    const type = fc.constantFrom('file', 'directory', 'symlink', 'hardlink', 'character', 'fifo' as const);
    const entry = fc.tuple(path, type, path).map(([path, type, linkName]) => fakeEntry(path, type, { linkName }));
    fc.assert(
      fc.property(fc.array(entry, { maxLength: 12 }), (entries) => {
        try {
          const links = new Map<LayerInode, number>();
          const visit = (inode: LayerInode): void => {
            if (!isDirectory(inode)) links.set(inode, (links.get(inode) ?? 0) + 1);
            else {
              const below = [...inode.children.values()].filter(isDirectory).length;
              assert.equal(inode.links, 2 + below);
              for (const child of inode.children.values()) visit(child);
            }
          };
          visit(buildLayerTree(entries).root);
          for (const [inode, names] of links) assert.equal(inode.links, names);
        } catch (error) {
          assert.ok(error instanceof LayerError, String(error));
        }
      }),
      { numRuns: 2000 },
    );
  });
});
