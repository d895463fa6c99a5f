import { access } from 'node:fs/promises';
import { Command, CommanderError } from 'commander';
import packageJson from '#package' with { type: 'json' };
import { EXIT, exitCodeOf } from './exit-code.ts';

/** In the order of the help. Each is a file of `commands/`; only the one that runs is loaded. */
const COMMANDS = [
  'up',
  'pull',
  'run',
  'status',
  'inspect',
  'index',
  'convert',
  'optimize',
  'deploy',
  'node',
  'cluster',
] as const;

const EXIT_CODES = `
Exit codes: 0 done, 1 failed, 2 wrong command line, 3 agent, containerd or registry unreachable, 4 no such image or not
allowed, 78 wrong setting, 130 interrupted.`;

async function main(args: readonly string[]): Promise<void> {
  const program = new Command('kindling')
    .description(
      'Starts containers before their images are there: lazy layers, shared between nodes, learned from real starts.',
    )
    .version(packageJson.version)
    .showHelpAfterError('(kindling --help, kindling COMMAND --help)')
    .addHelpText('after', EXIT_CODES)
    .exitOverride();
  const wanted = args.find((argument) => !argument.startsWith('-'));
  const names = COMMANDS.filter((name) => name === wanted);
  for (const name of names.length > 0 ? names : COMMANDS) {
    const file = new URL(`commands/${name}.ts`, import.meta.url);
    if (await missing(file)) continue;
    const module = (await import(file.href)) as { command(): Command };
    program.addCommand(module.command().exitOverride());
  }
  try {
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

async function missing(file: URL): Promise<boolean> {
  return await access(file).then(
    () => false,
    () => true,
  );
}

await main(process.argv.slice(2));
