import { Command } from 'commander';
import { BUS_LIMITS } from '#shared/bus/bus.ts';
import type { DeadLetterView } from '#shared/events/dead-letter.ts';
import { agentOf, controlSocketOption, type AgentFlags } from '../agent-access.ts';
import { clusterAccess } from '../cluster-access.ts';
import { boxOfCluster, boxOfNode, type DeadLetterBox, type Settling } from '../dead-letter-box.ts';
import { EXIT } from '../exit-code.ts';
import { collect, wholeNumber } from '../option-values.ts';
import { table } from '../table.ts';
import { untilInterrupted } from '../until-interrupted.ts';

interface Flags extends AgentFlags {
  readonly nats?: string;
  readonly retry: readonly string[];
  readonly drop: readonly string[];
  readonly limit: number;
  readonly json?: true;
}

const ALL = 'all';

export function command(): Command {
  const dead = new Command('dead')
    .summary('events that failed for good: list them, put them back, drop them')
    .description(
      'Asks the cluster when --nats or NATS_URL names one, otherwise the agent of this node. An event that is put back is ' +
        'delivered again to all that take its type; they know what they have done already.',
    )
    .option('--retry <id>', 'put this letter back among the events, or "all" (may be repeated)', collect, [])
    .option('--drop <id>', 'forget this letter, or "all" (may be repeated)', collect, [])
    .option('--limit <n>', 'letters to list at most, the newest', wholeNumber, 100)
    .option('--nats <url>', 'NATS server of the cluster (default: $NATS_URL)')
    .addOption(controlSocketOption())
    .option('--json', 'print as JSON')
    .action(async (flags: Flags) => {
      await untilInterrupted((signal) => run(flags, signal));
    });
  return new Command('events')
    .summary('events that failed for good: list them, put them back, drop them')
    .addCommand(dead);
}

async function run(flags: Flags, signal: AbortSignal): Promise<void> {
  await using bus = await clusterAccess(flags.nats);
  const box = bus === undefined ? boxOfNode(agentOf(flags)) : boxOfCluster(bus);
  if (flags.retry.length === 0 && flags.drop.length === 0) {
    const letters = await box.list(flags.limit, signal);
    process.stdout.write(`${flags.json === true ? JSON.stringify(letters) : textOf(letters)}\n`);
    return;
  }
  const result = {
    retried: await settleAll(box, flags.retry, 'retry', signal),
    dropped: await settleAll(box, flags.drop, 'drop', signal),
  };
  const missing = [...result.retried.missing, ...result.dropped.missing];
  if (missing.length > 0) process.exitCode = EXIT.notFound;
  if (flags.json === true) {
    process.stdout.write(
      `${JSON.stringify({ retried: result.retried.done, dropped: result.dropped.done, missing })}\n`,
    );
    return;
  }
  process.stdout.write(`${result.retried.done.length} put back, ${result.dropped.done.length} dropped\n`);
  if (missing.length > 0) process.stderr.write(`No dead letter: ${missing.join(', ')}\n`);
}

interface Settled {
  readonly done: readonly string[];
  readonly missing: readonly string[];
}

async function settleAll(
  box: DeadLetterBox,
  ids: readonly string[],
  how: Settling,
  signal: AbortSignal,
): Promise<Settled> {
  const isAll = ids.includes(ALL);
  const wanted = isAll ? (await box.list(BUS_LIMITS.deadLetters, signal)).map(({ id }) => id) : ids;
  const done: string[] = [];
  const missing: string[] = [];
  for (const id of wanted) {
    if (await box.settle(id, how, signal)) done.push(id);
    // Of "all", someone else may have settled one meanwhile.
    else if (!isAll) missing.push(id);
  }
  return { done, missing };
}

function textOf(letters: readonly DeadLetterView[]): string {
  if (letters.length === 0) return 'No dead letters';
  const rows = letters.map(({ id, atMs, type, image, attempts, consumer, reason }) => [
    id,
    atMs === 0 ? '' : new Date(atMs).toISOString().slice(0, 19),
    type,
    image ?? '',
    String(attempts),
    consumer,
    reason,
  ]);
  return table(['ID', 'TIME (UTC)', 'TYPE', 'IMAGE', 'ATTEMPTS', 'CONSUMER', 'REASON'], rows, [4]);
}
