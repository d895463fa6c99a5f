import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PackingChoice } from './packing-choice.ts';

/** How many of a hundred transfers are packed, when those take so long. */
function packedOf(choice: PackingChoice, packedMs: number, plainMs: number): number {
  let count = 0;
  for (let i = 0; i < 100; i++) {
    const packed = choice.next();
    choice.took(packed, 512 * 1024, packed ? packedMs : plainMs);
    if (packed) count++;
  }
  return count;
}

test('contents are asked for in the form in which they come sooner, and the other is tried now and then', () => {
  const choice = new PackingChoice('auto');
  const onNarrowLinks = packedOf(choice, 60, 150);
  assert.ok(onNarrowLinks > 85 && onNarrowLinks < 100, `${onNarrowLinks} packed`);
  const onBusyMachines = packedOf(choice, 300, 100);
  assert.ok(onBusyMachines > 0 && onBusyMachines < 60, `${onBusyMachines} packed`);
  assert.ok(packedOf(choice, 300, 100) < 10);
  for (let i = 0; i < 3; i++) packedOf(choice, 60, 150);
  assert.ok(packedOf(choice, 60, 150) > 85, 'it is found out again');
});

test('where both are as fast contents come packed', () => {
  assert.ok(packedOf(new PackingChoice('auto'), 100, 95) > 85);
});

test('a setting decides for good', () => {
  assert.equal(packedOf(new PackingChoice('always'), 300, 100), 100);
  assert.equal(packedOf(new PackingChoice('never'), 100, 300), 0);
});
