import assert from 'node:assert/strict';
import { test } from 'node:test';
import { leaksBetween, type Residue } from './node-residue.ts';

const MEMORY = { residentBytes: 50_000_000, peakBytes: 60_000_000, proportionalBytes: 20_000_000 };
const NOTHING: Residue = {
  mounts: ['fuse.kindling /n/k/data/fuse'],
  processes: ['7 agent'],
  keeper: { 'file /dev/fuse': 1, socket: 7, pipe: 8 },
  agent: { 'file /dev/fuse': 1, 'file /n/k/data/snapshots.db': 1, socket: 5 },
  layersOnDisk: [],
  layersKnown: [],
  snapshots: [],
  snapshotFolders: [],
  mountPoints: [],
  temporary: [],
  memory: { keeper: MEMORY, agent: MEMORY },
};

test('a node that holds what it held before has leaked nothing, whichever agent serves it now', () => {
  assert.deepEqual(leaksBetween(NOTHING, { ...NOTHING, processes: ['9 agent'] }), []);
});

test('every kind of thing that is left is named', () => {
  const left: [Partial<Residue>, RegExp][] = [
    [{ mounts: [...NOTHING.mounts, 'erofs /n/k/data/m/aaaa'] }, /mounts: erofs/],
    [{ processes: ['7 agent', '8 containerd-shim'] }, /processes: .*shim/],
    [{ keeper: { ...NOTHING.keeper, socket: 9 } }, /keeper: 9 of socket, 7 before/],
    [{ agent: { ...NOTHING.agent, 'file /n/k/data/layers/aaaa/image (deleted)': 1 } }, /agent: 1 of file .*deleted/],
    [{ layersOnDisk: ['aaaa'] }, /layersOnDisk: aaaa/],
    [{ snapshots: ['test/1/x'] }, /snapshots: test/],
    [{ temporary: ['layers/.tmp-aaaa'] }, /temporary files/],
    [{ memory: { agent: MEMORY, keeper: { ...MEMORY, residentBytes: 90_000_000 } } }, /keeper has grown/],
  ];
  for (const [part, message] of left) {
    const leaks = leaksBetween(NOTHING, { ...NOTHING, ...part });
    assert.equal(leaks.length, 1);
    assert.match(leaks[0] ?? '', message);
  }
});
