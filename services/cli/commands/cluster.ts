import { Command } from 'commander';
import { setTimeout as sleep } from 'node:timers/promises';
import { BusError, type Bus } from '#shared/bus/bus.ts';
import { SettingsError } from '#shared/config/settings.ts';
import {
  decodeMessage,
  DISTRIBUTION_VERSION,
  encodeMessage,
  SUBJECTS,
  viewReply,
  type ViewReply,
} from '#shared/distribution/messages.ts';
import { byteText } from '../byte-text.ts';
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
/** Of those that a node has got most from. */
const FEEDS_SHOWN = 2;
/** Moves the cursor to the top left and clears what is below. */
const TOP = '\u001B[H\u001B[J';

export function command(): Command {
  return new Command('cluster')
    .summary(
      'nodes and layers of the cluster: who is there and feeds whom, what is held and was read from the registry how often',
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
  try {
    const reply = await bus.messages.request(SUBJECTS.view, request, ANSWER_MS, signal);
    return decodeMessage(viewReply, reply, "the distributor's answer");
  } catch (error) {
    if (!(error instanceof BusError) || error.code !== 'no-responder') throw error;
    const message =
      'Cannot show the cluster: no distributor answers, so nothing is shared; start one (kindling@distributor)';
    throw new BusError('unavailable', message, { cause: error });
  }
}

/** What `kindling cluster` prints of it. */
export function textOf(view: ViewReply, most: number): string {
  const lines = [headline(view)];
  if (view.registries.length === 0) {
    lines.push(
      'Sharing is off: no registry is allowed, so every node reads everything from the registry by itself.',
      'Set KINDLING_DISTRIBUTOR_REGISTRIES for the distributor, for example to registry.example or to *.',
    );
  }
  const nodes = view.nodes.toSorted((a, b) => (a.record.node < b.record.node ? -1 : 1)).map(rowOfNode);
  if (nodes.length > 0) {
    const head = ['NODE', 'ADDRESS', 'ZONE', 'TRANSFER', 'REGISTRY', 'PEERS', 'GIVEN', 'MOST FROM'];
    lines.push('', table(head, nodes, [4, 5, 6]));
    if (view.nodes.length < view.nodeCount) lines.push(`${view.nodeCount - view.nodes.length} more nodes`);
    if (view.nodes.some(({ suspected }) => suspected)) lines.push('! several nodes report that it sends wrong bytes');
  }
  const layers = view.layers
    .toSorted((a, b) => b.unread + b.leases - (a.unread + a.leases) || (a.layer < b.layer ? -1 : 1))
    .slice(0, most);
  if (layers.length > 0) {
    const rows = layers.map(({ layer, members, spanCount, held, copies, reads, readSpans, leases, unread }) => [
      layer.slice(7, 19),
      String(members),
      `${held}/${spanCount}`,
      held === 0 ? '-' : (copies / held).toFixed(1),
      ratio(reads, readSpans),
      String(leases),
      String(unread),
    ]);
    const head = ['LAYER', 'NODES', 'HELD', 'COPIES', 'READS', 'READING', 'WANTED'];
    lines.push('', table(head, rows, [1, 2, 3, 4, 5, 6]), '');
    lines.push(
      'REGISTRY, PEERS, GIVEN: bytes since the start of the node, from the registry, from and to other nodes',
      'HELD: spans that a node has; COPIES: of each, on average; READS: how often each was read from the registry;',
      'READING: from there now; WANTED: and not read yet',
    );
  }
  if (layers.length < view.layers.length) lines.push(`${view.layers.length - layers.length} more layers: --layers`);
  return lines.join('\n');
}

function headline({ nodeCount, nodes, layers }: ViewReply): string {
  const sum = (numbers: readonly number[]): number => numbers.reduce((total, one) => total + one, 0);
  const peerBytes = sum(nodes.map(({ figures }) => figures?.peerBytes ?? 0));
  const registryBytes = sum(nodes.map(({ figures }) => figures?.registryBytes ?? 0));
  const reads = ratio(sum(layers.map((layer) => layer.reads)), sum(layers.map((layer) => layer.readSpans)));
  const parts = [
    `${nodeCount} nodes, ${layers.length} layers`,
    `${byteText(registryBytes)} from the registry, ${byteText(peerBytes)} from node to node`,
    ...(reads === '-' ? [] : [`the registry was read ${reads} times for each span`]),
  ];
  return parts.join('; ');
}

function rowOfNode({ record, figures, suspected }: ViewReply['nodes'][number]): string[] {
  const { node, host, port, zone, tls } = record;
  const bytes =
    figures === undefined ? ['-', '-', '-'] : [figures.registryBytes, figures.peerBytes, figures.givenBytes];
  const feeds = (figures?.feeds ?? []).map((feed) => `${feed.node} ${byteText(feed.bytes)}`);
  return [
    suspected ? `${node} !` : node,
    `${host}:${port}`,
    zone,
    tls ? 'mutual TLS' : 'HTTP',
    ...bytes.map((one) => (typeof one === 'number' ? byteText(one) : one)),
    feeds.slice(0, FEEDS_SHOWN).join(', '),
  ];
}

function ratio(reads: number, spans: number): string {
  return spans === 0 ? '-' : (reads / spans).toFixed(2);
}
