import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { Residency } from './residency.ts';

test('counts, finds what is missing and comes back from its bytes, as a set of numbers would', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 100 }).chain((spans) =>
        fc.record({
          spans: fc.constant(spans),
          added: fc.array(fc.nat(spans - 1)),
          deleted: fc.array(fc.nat(spans - 1)),
          from: fc.nat(spans),
        }),
      ),
      ({ spans, added, deleted, from }) => {
        const residency = new Residency(spans);
        const model = new Set<number>();
        for (const span of added) {
          assert.equal(residency.add(span), !model.has(span));
          model.add(span);
        }
        for (const span of deleted) assert.equal(residency.delete(span), model.delete(span));
        const copy = new Residency(spans, residency.toBytes());
        for (const each of [residency, copy]) {
          assert.equal(each.count, model.size);
          assert.equal(each.complete, model.size === spans);
          let missing = from;
          while (model.has(missing)) missing++;
          assert.equal(each.nextMissing(from), missing < spans ? missing : -1);
        }
      },
    ),
    { numRuns: 200 },
  );
});

test('bits behind the last span and a file that is too short or too long mean nothing', () => {
  assert.equal(new Residency(3, Uint8Array.of(0xff)).count, 3);
  assert.equal(new Residency(20, Uint8Array.of(0xff)).count, 8);
  assert.equal(new Residency(4, Uint8Array.of(0x0f, 0xff)).count, 4);
  assert.equal(new Residency(3).add(3), false);
  assert.equal(new Residency(0).complete, true);
});
