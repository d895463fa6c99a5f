import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { BootRecord } from './boot-record.ts';

const folder = await mkdtemp(join(tmpdir(), 'kindling-boot-'));
after(() => rm(folder, { recursive: true }));
const never = new AbortController().signal;

async function boot(id: string, path: string): Promise<BootRecord> {
  const bootId = join(folder, `id-${id}`);
  await writeFile(bootId, `${id}\n`);
  return await BootRecord.read(path, never, bootId);
}

test('believes the caches within a boot and after a clean shutdown, and not after another end', async () => {
  const path = join(folder, 'boot.json');
  const first = await boot('a', path);
  assert.equal(first.trusted, false);
  await first.markRunning();
  const killed = await boot('a', path);
  assert.equal(killed.trusted, true);
  assert.equal((await boot('b', path)).trusted, false);
  await killed.markClean();
  const next = await boot('b', path);
  assert.equal(next.trusted, true);
  await next.markRunning();
  assert.equal((await boot('c', path)).trusted, false);
});

test('a record that was torn is not believed', async () => {
  const path = join(folder, 'torn.json');
  await writeFile(path, '{"bootId":"a","cle');
  assert.equal((await boot('a', path)).trusted, false);
});
