import assert from 'node:assert/strict';
import { test } from 'node:test';
import { assert as forAll, constantFrom, property, string } from 'fast-check';
import { parseFilters } from './snapshot-filter.ts';
import { SnapshotError } from './snapshot-error.ts';

const snapshot = {
  name: 'default/7/sha256:abc',
  parent: '',
  kind: 'committed',
  labels: { 'containerd.io/snapshot.ref': 'sha256:abc', 'a.b.c': 'x,y "z"', empty: '' },
} as const;

const cases: readonly (readonly [matches: boolean, ...filters: string[]])[] = [
  [true],
  [true, ''],
  [true, 'name=="default/7/sha256:abc"'],
  [true, 'name==default/7/sha256:abc'],
  [false, 'name!=default/7/sha256:abc'],
  [true, 'labels."containerd.io/snapshot.ref"=="sha256:abc",parent==""'],
  [true, 'labels."containerd.io/snapshot.ref"==sha256:abc'],
  [true, 'labels."containerd.io/snapshot.ref" == sha256:abc , kind == committed'],
  [false, 'labels."containerd.io/snapshot.ref"==sha256:abc,kind==active'],
  [true, 'kind==active', 'kind==committed'],
  [true, 'labels.a.b.c=="x,y \\"z\\""'],
  [true, 'labels.a.b.c'],
  [true, 'labels.empty'],
  [false, 'labels.a'],
  [false, 'labels.constructor'],
  [true, 'labels.nope!=x'],
  [false, 'labels.nope~=.*'],
  [true, 'name~=sha256:[a-c]+$'],
  [true, 'name~=/^default\\/.*,?/'],
  [true, 'name~=|^default/|'],
  [false, 'unknown'],
  [false, 'name.more'],
];

for (const [matches, ...filters] of cases) {
  test(`${JSON.stringify(filters)} ${matches ? 'matches' : 'does not match'}`, () => {
    assert.equal(parseFilters(filters)(snapshot), matches);
  });
}

for (const filter of ['name==', '==x', 'name==a,', 'name==a b', 'labels."x', 'name~=/x', 'name~=(', 'labels."\\q"']) {
  test(`${filter} is refused with a place`, () => {
    assert.throws(() => parseFilters([filter]), { name: 'SnapshotError', code: 'invalid', message: /filter/ });
  });
}

test('Any text is a filter or a SnapshotError', () => {
  forAll(
    property(string({ unit: constantFrom(...'nam.=!~",/|\\ labels') }), (text) => {
      try {
        parseFilters([text])(snapshot);
      } catch (error) {
        assert.ok(error instanceof SnapshotError);
      }
    }),
    { numRuns: 500 },
  );
});

test('A quoted value is found again, whatever it holds', () => {
  forAll(
    property(string({ unit: 'grapheme' }), (value) => {
      const quoted = `"${value.replaceAll(/["\\]/g, '\\$&').replaceAll('\n', '\\n')}"`;
      assert.ok(parseFilters([`labels.l==${quoted}`])({ ...snapshot, labels: { l: value } }));
    }),
    { numRuns: 300 },
  );
});
