import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SnapshotError, toSnapshotError } from './snapshot-error.ts';

test('A full disk is told as one, whether a file or the database met it', () => {
  for (const cause of [
    Object.assign(new Error('ENOSPC: no space left on device, mkdir'), { code: 'ENOSPC' }),
    Object.assign(new Error('database or disk is full'), { code: 'ERR_SQLITE_ERROR', errcode: 13 }),
  ]) {
    const error = toSnapshotError(cause);
    assert.ok(error instanceof SnapshotError && error.code === 'disk-full' && error.cause === cause);
    assert.ok(error.message.includes(cause.message));
  }
});

test('A caller who has gone is no fault, and other errors stay what they are', () => {
  const gone = toSnapshotError(AbortSignal.abort().reason);
  assert.ok(gone instanceof Error && 'code' in gone);
  const other = new Error('other');
  assert.equal(toSnapshotError(other), other);
  const ours = new SnapshotError('not-found', 'x');
  assert.equal(toSnapshotError(ours), ours);
});
