import assert from 'node:assert/strict';
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { createProgram } from '../program.ts';

test('where indexes cannot be written is said before a layer is read', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'kindling-index-'));
  try {
    const file = join(folder, 'file');
    await writeFile(file, '');
    const index = async (output: string) => {
      // Nobody is there to read a layer from.
      const args = ['index', '127.0.0.1:1/a:b', '-o', output];
      await (await createProgram(args)).parseAsync(args, { from: 'user' });
    };
    for (const output of ['/proc', '/proc/kindling/indexes', file, join(file, 'indexes')]) {
      await assert.rejects(index(output), {
        name: 'OutputError',
        message: new RegExp(`^Cannot write indexes to ${output}: `),
      });
    }
    await assert.rejects(index(join(folder, 'a', 'b')), { code: 'unreachable' });
    assert.deepEqual(await readdir(join(folder, 'a', 'b')), []);
  } finally {
    await rm(folder, { recursive: true });
  }
});
