import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CommanderError } from 'commander';
import { createProgram } from './program.ts';

async function errorOf(args: readonly string[]): Promise<unknown> {
  const program = await createProgram(args);
  let said = '';
  for (const command of program.commands) command.configureOutput({ writeErr: (text) => void (said += text) });
  try {
    await program.parseAsync([...args], { from: 'user' });
  } catch (error) {
    return error instanceof CommanderError ? said : error;
  }
  return undefined;
}

test('a level that the format does not have is refused before anything is read', async () => {
  for (const [format, level, answer] of [
    ['estargz', '10', /argument '10' is invalid. estargz takes 1 to 9/],
    ['estargz', '0', /estargz takes 1 to 9/],
    ['zstd-chunked', '99', /zstd-chunked takes 1 to 22/],
  ] as const) {
    for (const command of ['convert', 'optimize']) {
      const said = await errorOf([command, '--level', level, '--format', format, '127.0.0.1:1/a:b', '127.0.0.1:1/c:d']);
      assert.match(String(said), answer, command);
    }
  }
  // Tried, with nobody there.
  const args = ['convert', '127.0.0.1:1/a:b', '127.0.0.1:1/c:d', '--format', 'zstd-chunked', '--level', '22'];
  assert.equal(((await errorOf(args)) as { readonly code?: unknown }).code, 'unreachable');
});
