import { Command } from 'commander';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Bus } from '#shared/bus/bus.ts';
import { SettingsError } from '#shared/config/settings.ts';
import {
  decodeMessage,
  DISTRIBUTION_VERSION,
  encodeMessage,
  SUBJECTS,
  viewReply,
  type ViewReply,
} from '#shared/distribution/messages.ts';
import { clusterAccess } from '../cluster-access.ts';
import { table } from '../table.ts';
import { untilInterrupted } from '../until-interrupted.ts';

interface Flags {
  readonly nats?: string;
  readonly watch?: true;
  readonly layers: string;
  readonly json?: true;
}

const CONNECT_MS = 5_000;
const ANSWER_MS = 5_000;
const REFRESH_MS = 1_000;
/** Moves the cursor to the top left and clears what is below. */
const TOP = '\u001B[H\u001B[J';

export function command(): Command {
  return new Command('cluster')
    .summary(
      'nodes and layers of the cluster: who is there, what is held how often, what is being read from the registry',
    )
    .description('Asks the distributor. A layer is listed while nodes hold or want spans of it.')
    .option('--nats <url>', 'NATS server of the cluster (default: $NATS_URL)')
    .option('-w, --watch', 'show it anew each second until interrupted')
    .option('--layers <n>', 'layers to list at most, those with the most spans to come first', '20')
    .option('--json', 'print as JSON, with --watch one line a second')
    .action(async (flags: Flags) => {
      await untilInterrupted((signal) => show(flags, signal));
    });
}

async function show(flags: Flags, signal: AbortSignal): Promise<void> {
  const opened = await clusterAccess(flags.nats);
  if (opened === undefined) {
    throw new SettingsError('Cannot ask the cluster: tell its NATS server with --nats or NATS_URL');
  }
  await using bus = opened;
  await connected(bus, signal);
  for (;;) {
    const view = await ask(bus, signal);
    const text = flags.json === true ? JSON.stringify(view) : textOf(view, Number(flags.layers));
    const isScreen = flags.watch === true && flags.json !== true && process.stdout.isTTY;
    process.stdout.write(`${isScreen ? TOP : ''}${text}\n`);
    if (flags.watch !== true) return;
    await sleep(REFRESH_MS, undefined, { signal });
  }
}

/** A question does not wait for the connection, as an event would. @throws BusError from the question when there is none in time */
async function connected(bus: Bus, signal: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  using _reached = bus.onConnected(resolve);
  const over = new AbortController();
  const late = sleep(CONNECT_MS, undefined, { signal: AbortSignal.any([signal, over.signal]) });
  await Promise.race([promise, late]).finally(() => over.abort());
  await late.catch(() => {});
  signal.throwIfAborted();
}

async function ask(bus: Bus, signal: AbortSignal): Promise<ViewReply> {
  const request = encodeMessage({ version: DISTRIBUTION_VERSION });
  const reply = await bus.messages.request(SUBJECTS.view, request, ANSWER_MS, signal);
  return decodeMessage(viewReply, reply, "the distributor's answer");
}

function textOf(view: ViewReply, most: number): string {
  const nodes = view.nodes
    .toSorted((a, b) => (a.node < b.node ? -1 : 1))
    .map(({ node, host, port, zone, tls }) => [node, `${host}:${port}`, zone, tls ? 'mutual TLS' : 'HTTP']);
  const lines = [`${view.nodes.length} nodes, ${view.layers.length} layers`];
  if (nodes.length > 0) lines.push('', table(['NODE', 'ADDRESS', 'ZONE', 'TRANSFER'], nodes));
  const layers = view.layers
    .toSorted((a, b) => b.unread + b.leases - (a.unread + a.leases) || (a.layer < b.layer ? -1 : 1))
    .slice(0, most);
  if (layers.length > 0) {
    const rows = layers.map(({ layer, members, spanCount, held, copies, leases, unread }) => [
      layer.slice(7, 19),
      String(members),
      `${held}/${spanCount}`,
      held === 0 ? '-' : (copies / held).toFixed(1),
      String(leases),
      String(unread),
    ]);
    const head = ['LAYER', 'NODES', 'HELD', 'COPIES', 'READING', 'WANTED'];
    lines.push('', table(head, rows, [1, 2, 3, 4, 5]), '');
    lines.push(
      'HELD: spans that a node has; COPIES: of each, on average; READING: from the registry; WANTED: and not read yet',
    );
  }
  if (layers.length < view.layers.length) lines.push(`${view.layers.length - layers.length} more layers: --layers`);
  return lines.join('\n');
}
