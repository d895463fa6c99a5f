import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { it } from 'node:test';
import { README, withSettings } from './readme-settings.ts';

it("README.md has the services' settings as they are", async () => {
  const text = await readFile(README, 'utf8');
  assert.ok(text === (await withSettings(text)), 'The tables are out of date. Run: node infra/readme-settings.ts');
});

it('says which lines are missing where README.md has no place for the tables', async () => {
  await assert.rejects(withSettings('# Kindling\n'), /settings: begin/);
});
