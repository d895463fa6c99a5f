import { CommanderError } from 'commander';
import { EXIT, exitCodeOf } from './exit-code.ts';
import { createProgram } from './program.ts';

async function main(args: readonly string[]): Promise<void> {
  try {
    const program = await createProgram(args);
    await program.parseAsync([...args], { from: 'user' });
  } catch (error) {
    if (error instanceof CommanderError) {
      process.exitCode = error.exitCode === 0 ? EXIT.ok : EXIT.usage;
      return;
    }
    const message = error instanceof Error ? error.message : String(error);
    process.stderr.write(
      args.includes('--json') ? `${JSON.stringify({ error: message })}\n` : `kindling: ${message}\n`,
    );
    process.exitCode = exitCodeOf(error);
  }
}

await main(process.argv.slice(2));
