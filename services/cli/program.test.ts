import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { CommanderError } from 'commander';
import { COMMANDS, createProgram } from './program.ts';

async function outputOf(args: readonly string[]): Promise<{ readonly code: string; readonly text: string }> {
  let text = '';
  const take = (part: string) => void (text += part);
  const program = await createProgram(args);
  const output = { writeOut: take, writeErr: take };
  for (const command of program.commands) {
    for (const one of [command, ...command.commands]) one.configureOutput(output);
  }
  program.configureOutput(output);
  try {
    await program.parseAsync([...args], { from: 'user' });
  } catch (error) {
    if (error instanceof CommanderError) return { code: error.code, text };
    throw error;
  }
  return { code: '', text };
}

describe('the command line', () => {
  it('names every command with one line, and the exit codes', async () => {
    const { code, text } = await outputOf(['--help']);
    assert.equal(code, 'commander.helpDisplayed');
    const program = await createProgram([]);
    for (const command of program.commands) {
      assert.match(text, new RegExp(`^  ${command.name()} .*\\S`, 'm'));
      assert.notEqual(command.summary(), '', command.name());
    }
    assert.match(text, /Exit codes: 0 done/);
  });

  it('has a help text for every command, with what each argument and option means', async () => {
    for (const name of COMMANDS) {
      const program = await createProgram([name]);
      const command = program.commands.find((one) => one.name() === name);
      assert.ok(command, name);
      for (const one of [command, ...command.commands]) {
        assert.notEqual(one.description(), '', one.name());
        for (const part of [...one.options, ...one.registeredArguments]) {
          assert.notEqual(part.description, '', `${name}: ${part.name()}`);
        }
      }
      const { code, text } = await outputOf([name, '--help']);
      assert.equal(code, 'commander.helpDisplayed', name);
      assert.match(text, new RegExp(`^Usage: kindling ${name}`));
    }
  });

  it('refuses commands and options that it does not know, and says where help is', async () => {
    for (const args of [['upp'], ['pull'], ['status', '--jsn'], ['node', 'relaod']]) {
      const { code, text } = await outputOf(args);
      assert.match(code, /^commander\.(unknown|missing)/, args.join(' '));
      assert.match(text, /kindling --help/, args.join(' '));
    }
  });
});
