import { spawn } from 'node:child_process';
import { Command, Option } from 'commander';
import { keeperCommand } from '#services/snapshotter/keeper/keeper-arguments.ts';
import { fuseDirOf, SETTINGS } from '#services/snapshotter/config.ts';
import { loadSettings } from '#shared/config/settings.ts';

interface Flags {
  readonly dataDir?: string;
  readonly containerd?: string;
  readonly socket?: string;
  readonly standby?: true;
}

const AGENT = new URL('../../snapshotter/main.ts', import.meta.url).pathname;
/** A heap of this size keeps young objects short-lived; V8's default would let the agent grow by some 30 MiB. */
const AGENT_FLAGS = ['--disable-warning=ExperimentalWarning', '--max-semi-space-size=4'];

export function command(): Command {
  return new Command('up')
    .summary('run the node: keeper and agent, everything embedded')
    .description(
      'Runs until it is told to stop. Settings come from the environment (KINDLING_…, see the README); the options here are ' +
        'short for some of them. containerd needs a proxy plugin "kindling" of type "snapshot" with the socket as its address.',
    )
    .addOption(new Option('--data-dir <path>', SETTINGS.dataDir.help))
    .addOption(new Option('--socket <path>', SETTINGS.socket.help))
    .addOption(new Option('--containerd <path>', SETTINGS.containerd.help))
    .option('--standby', 'keep a second agent loaded that takes over at once')
    .action(async (flags: Flags) => {
      const env = {
        ...process.env,
        ...(flags.dataDir === undefined ? {} : { [SETTINGS.dataDir.env]: flags.dataDir }),
        ...(flags.socket === undefined ? {} : { [SETTINGS.socket.env]: flags.socket }),
        ...(flags.containerd === undefined ? {} : { [SETTINGS.containerd.env]: flags.containerd }),
      };
      // A mistake is said here, before anything is mounted.
      const values = loadSettings(SETTINGS, env);
      const args = keeperCommand({
        mount: fuseDirOf(values.dataDir),
        data: values.dataDir,
        transport: values.fuse,
        standby: flags.standby === true,
        agent: [...AGENT_FLAGS, AGENT],
      });
      process.exitCode = await runKeeper(args, env);
    });
}

/** The keeper is a process of its own, so that it stays as small as it is elsewhere. Signals are handed on. */
async function runKeeper(args: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  const keeper = spawn(process.execPath, args, { stdio: 'inherit', env, detached: true });
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR2'] as const;
  for (const name of signals) process.on(name, () => keeper.kill(name));
  return await new Promise<number>((resolve, reject) => {
    keeper.once('error', reject);
    keeper.once('exit', (code, signal) => resolve(code ?? (signal === null ? 1 : 128)));
  });
}
