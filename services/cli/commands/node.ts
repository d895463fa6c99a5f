import { Command } from 'commander';
import { setTimeout as sleep } from 'node:timers/promises';
import { agentOf, controlSocketOption, type AgentFlags } from '../agent-access.ts';
import { EXIT } from '../exit-code.ts';
import { wholeNumber } from '../option-values.ts';
import { untilInterrupted } from '../until-interrupted.ts';

interface Flags extends AgentFlags {
  readonly timeout: number;
  readonly json?: true;
}

const CHECK_MS = 100;

export function command(): Command {
  const reload = new Command('reload')
    .summary("replace the agent's code by the version on disk, under running containers")
    .description('The keeper rolls back a version that does not come up. Containers notice a short wait at most.')
    .addOption(controlSocketOption())
    .option('--timeout <seconds>', 'how long to wait for the new agent', wholeNumber, 60)
    .option('--json', 'print as JSON')
    .action(async (flags: Flags) => {
      await untilInterrupted((signal) => reloadAgent(flags, signal));
    });
  return new Command('node').summary('operate the agent of this node').addCommand(reload);
}

async function reloadAgent(flags: Flags, signal: AbortSignal): Promise<void> {
  const agent = agentOf(flags);
  const before = await agent.status(signal);
  await agent.reload(signal);
  const deadline = Date.now() + flags.timeout * 1000;
  while (Date.now() < deadline) {
    await sleep(CHECK_MS, undefined, { signal });
    // Between two agents nobody answers.
    const now = await agent.status(signal).catch(() => undefined);
    if (now === undefined || now.pid === before.pid || !now.ready) continue;
    const result = {
      before: { version: before.version, pid: before.pid },
      now: { version: now.version, pid: now.pid },
    };
    process.stdout.write(
      flags.json
        ? `${JSON.stringify(result)}\n`
        : `Agent ${before.version} (pid ${before.pid}) was replaced by ${now.version} (pid ${now.pid})\n`,
    );
    return;
  }
  process.stderr.write(`The agent was not replaced within ${flags.timeout} s: its log says why; the old one goes on\n`);
  process.exitCode = EXIT.failed;
}
