import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Command, Option } from 'commander';
import {
  AGENT_FLAGS,
  keeperCommand,
  keeperCompileCommand,
  keeperEnvironment,
} from '#services/snapshotter/keeper/keeper-arguments.ts';
import { SETTINGS } from '#services/snapshotter/config.ts';
import { fuseDirOf } from '#services/snapshotter/data-folder.ts';
import { loadPeerTls } from '#services/snapshotter/peers/peer-settings.ts';
import { loadSettings } from '#shared/config/settings.ts';
import { EMBEDDED, EMBEDDED_SETTINGS, takesEvents } from '../embedded-services.ts';
import { checkStart } from '../start-check.ts';

interface Flags {
  readonly dataDir?: string;
  readonly containerd?: string;
  readonly socket?: string;
  readonly code?: string;
  readonly standby?: true;
}

/** More than a slow machine takes; the keeper then compiles for itself. */
const COMPILE_TIMEOUT_MS = 10_000;
const CODE = fileURLToPath(new URL('../../..', import.meta.url));

export function command(): Command {
  return new Command('up')
    .summary('run the node: keeper and agent, and where it takes events by itself also gateway and indexer')
    .description(
      'Runs until it is told to stop. Settings come from the environment (KINDLING_…, see the README); the options here are ' +
        'short for some of them. containerd needs a proxy plugin "kindling" of type "snapshot" with the socket as its address.',
    )
    .addOption(new Option('--data-dir <path>', SETTINGS.dataDir.help))
    .addOption(new Option('--socket <path>', SETTINGS.socket.help))
    .addOption(new Option('--containerd <path>', SETTINGS.containerd.help))
    .option(
      '--code <path>',
      'folder of the version to run, or a link that leads to it: an upgrade follows it anew',
      CODE,
    )
    .option('--standby', 'keep a second agent loaded that takes over at once')
    .action(async (flags: Flags) => {
      const env = {
        ...process.env,
        ...(flags.dataDir === undefined ? {} : { [SETTINGS.dataDir.env]: flags.dataDir }),
        ...(flags.socket === undefined ? {} : { [SETTINGS.socket.env]: flags.socket }),
        ...(flags.containerd === undefined ? {} : { [SETTINGS.containerd.env]: flags.containerd }),
      };
      // A mistake is said here, before anything is mounted.
      const events = takesEvents(env);
      const values = loadSettings(SETTINGS, env, events ? EMBEDDED_SETTINGS : {});
      if (events) EMBEDDED.configure(env, values.dataDir);
      await loadPeerTls(values);
      await checkStart(values);
      const script = events ? 'services/cli/embedded.ts' : 'services/snapshotter/main.ts';
      const args = keeperCommand({
        mount: fuseDirOf(values.dataDir),
        data: values.dataDir,
        socket: values.socket,
        transport: values.fuse,
        standby: flags.standby === true,
        agent: [...AGENT_FLAGS, join(flags.code ?? CODE, script)],
      });
      runKeeper(args, keeperEnvironment(values.dataDir, env));
    });
}

/**
 * The keeper takes this process's place: it stays as small as it is elsewhere, and signals and the exit code are its own. Of
 * the descriptors only the standard ones are left to it.
 */
function runKeeper(args: readonly string[], env: NodeJS.ProcessEnv): never {
  spawnSync(process.execPath, keeperCompileCommand(), { env, stdio: 'ignore', timeout: COMPILE_TIMEOUT_MS });
  if (process.execve === undefined) throw new Error(`Node ${process.version} is too old: Kindling needs Node 24`);
  const text = Object.entries(env).filter((entry): entry is [string, string] => entry[1] !== undefined);
  return process.execve(process.execPath, [process.execPath, ...args], Object.fromEntries(text));
}
