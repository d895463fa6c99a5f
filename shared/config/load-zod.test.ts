import assert from 'node:assert/strict';
import { test } from 'node:test';
import { loadZod } from './load-zod.ts';

test('zod without its other languages parses, and says in English what is wrong', async () => {
  await loadZod();
  const { z } = await import('zod');
  assert.deepEqual(Object.keys(z.locales), []);
  const { error } = z.string().safeParse(1);
  assert.match(error?.issues[0]?.message ?? '', /expected string, received number/);
});
