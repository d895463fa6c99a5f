import { Command, Help } from 'commander';
import packageJson from '#package' with { type: 'json' };

/** In the order of the help. Each is a file of `commands/`; only the one that runs is loaded. */
export const COMMANDS = [
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
  'events',
] as const;

const EXIT_CODES = `
Exit codes: 0 done, 1 failed, 2 wrong command line, 3 agent, containerd, registry or NATS unreachable, 4 no such image
or not allowed, 78 wrong setting, 130 interrupted. "run" ends with the exit code of the container.`;

/** The program with the command that `args` name, or with all of them where they name none. Errors are thrown, not exited on. */
export async function createProgram(args: readonly string[]): Promise<Command> {
  const program = new Command('kindling')
    .description('Starts containers before their images are there: the data of a layer comes as it is read.')
    .version(packageJson.version)
    .showHelpAfterError('(kindling --help, kindling COMMAND --help)')
    .addHelpText('after', EXIT_CODES)
    // What stands behind the image of `run` belongs to the container.
    .enablePositionalOptions()
    // That a list is empty at first is not worth a word.
    .configureHelp({
      optionDescription(option) {
        const isEmptyList = Array.isArray(option.defaultValue) && option.defaultValue.length === 0;
        return isEmptyList ? option.description : new Help().optionDescription(option);
      },
    })
    .exitOverride();
  const wanted = args.find((argument) => !argument.startsWith('-'));
  const names = COMMANDS.filter((name) => name === wanted);
  for (const name of names.length > 0 ? names : COMMANDS) {
    const module = (await import(`./commands/${name}.ts`)) as { command(): Command };
    const command = module.command();
    for (const one of [command, ...command.commands]) {
      // The list of commands shows the summary, their own help the description.
      const summary = one.summary();
      if (one.description() === '') one.description(`${summary.charAt(0).toUpperCase()}${summary.slice(1)}.`);
      one.exitOverride().copyInheritedSettings(program);
    }
    program.addCommand(command);
  }
  return program;
}
