import { randomBytes } from 'node:crypto';
import { Command } from 'commander';
import { runContainer, type ContainerExit } from '#shared/containerd/container.ts';
import { ContainerdClient } from '#shared/containerd/containerd-client.ts';
import { ContainerdError } from '#shared/containerd/containerd-error.ts';
import { ContentStore } from '#shared/containerd/content-store.ts';
import { ImageRecords } from '#shared/containerd/image-records.ts';
import type { ControlClient } from '#shared/control/control-client.ts';
import type { Trace } from '#shared/control/control-protocol.ts';
import { hostPlatform, parsePlatform } from '#shared/registry/platform.ts';
import { formatReference, parseReference } from '#shared/registry/reference.ts';
import { agentOf } from '../agent-access.ts';
import { byteText } from '../byte-text.ts';
import { type ContainerFlags, withContainerOptions } from '../container-options.ts';
import { platformText } from '../option-values.ts';
import { untilInterrupted } from '../until-interrupted.ts';
import { waterfall, type Stage } from '../waterfall.ts';
import { pullImage } from './pull.ts';

interface Flags extends ContainerFlags {
  readonly platform?: string;
  readonly json?: true;
}

/** What a start did, and how long each part took. */
interface StartReport {
  readonly image: string;
  readonly exitCode: number;
  readonly totalMs: number;
  readonly stages: readonly Stage[];
  readonly fetched: {
    readonly spans: number;
    readonly bytes: Readonly<Record<'registry' | 'peer', number>>;
    readonly byPriority: Readonly<Record<'demand' | 'prefetch' | 'background', number>>;
  };
  readonly stalls: { readonly count: number; readonly totalMs: number; readonly longestMs: number };
  readonly failures: number;
}

const CLEANUP_MS = 30_000;

export function command(): Command {
  const run = new Command('run')
    .summary('start a container, pulling its image lazily if needed, and show where the time went')
    .description(
      'Prints what the container prints; the waterfall goes to stderr. Ends with the exit code of the container.',
    )
    .argument('<image>', 'image to start')
    .argument('[command...]', "command in place of the image's own; options for kindling stand before the image")
    .option('--platform <os/arch>', 'platform to choose from an index (default: this machine)', platformText)
    .option('--json', 'print the waterfall as JSON');
  return withContainerOptions(run, "our name in containerd's configuration")
    .passThroughOptions()
    .action(async (image: string, args: string[], flags: Flags) => {
      process.exitCode = await untilInterrupted(async (signal) => await start(image, args, flags, signal));
    });
}

async function start(text: string, args: readonly string[], flags: Flags, signal: AbortSignal): Promise<number> {
  const agent = agentOf(flags);
  const containerd = new ContainerdClient({ address: flags.containerd, namespace: flags.namespace });
  try {
    const report = await measure(agent, containerd, formatReference(parseReference(text)), args, flags, signal);
    process.stderr.write(flags.json ? `${JSON.stringify(report)}\n` : `${textOf(report)}\n`);
    return report.exitCode;
  } finally {
    containerd.close();
  }
}

async function measure(
  agent: ControlClient,
  containerd: ContainerdClient,
  name: string,
  args: readonly string[],
  flags: Flags,
  signal: AbortSignal,
): Promise<StartReport> {
  const { seq } = await agent.trace(undefined, signal);
  const originMs = performance.now();
  const stages: Stage[] = [];
  let lastMs = 0;
  const passed = (stage: string) => {
    const nowMs = performance.now() - originMs;
    stages.push({ name: stage, startMs: lastMs, endMs: nowMs });
    lastMs = nowMs;
  };

  const platform = flags.platform === undefined ? hostPlatform() : parsePlatform(flags.platform);
  const images = new ImageRecords(containerd, new ContentStore(containerd));
  const pull = async () => {
    const { done } = await pullImage(agent, name, flags, signal);
    stages.push({ name: 'resolve', startMs: lastMs, endMs: lastMs + done.resolveMs });
    lastMs += done.resolveMs;
    passed('pull');
  };
  let pulled = false;
  if ((await images.find(name, signal)) === undefined) {
    await pull();
    pulled = true;
  }

  const names = { snapshot: 'mount', container: 'create', task: 'runc create', started: 'runc start' } as const;
  const create = async () => {
    const image = await images.load(name, platform, signal);
    passed('read image');
    const id = `kindling-run-${randomBytes(6).toString('hex')}`;
    const { snapshotter, env } = flags;
    const onStage = (stage: keyof typeof names) => passed(names[stage]);
    const options = { id, image, snapshotter, args, env, hostNetwork: flags.hostNetwork === true, onStage };
    return await runContainer(containerd, options, signal);
  };
  const container = await create().catch(async (error: unknown) => {
    // The image is there, but not for our snapshotter: another one has pulled it.
    if (pulled || !(error instanceof ContainerdError) || error.code !== 'not-found') throw error;
    await pull();
    return await create();
  });
  let exit: ContainerExit;
  try {
    let spoke = false;
    const first = () => {
      if (!spoke) passed('first output');
      spoke = true;
    };
    container.stdout.once('data', first);
    container.stderr.once('data', first);
    container.stdout.pipe(process.stdout, { end: false });
    container.stderr.pipe(process.stderr, { end: false });
    exit = await abortable(container.exited, signal);
    passed('exit');
  } finally {
    await container.remove(AbortSignal.timeout(CLEANUP_MS));
  }
  return { image: name, exitCode: exit.exitCode, totalMs: lastMs, stages, ...sums(await agent.trace(seq, signal)) };
}

function sums({ events }: Trace): Pick<StartReport, 'fetched' | 'stalls' | 'failures'> {
  const bytes = { registry: 0, peer: 0 };
  const byPriority = { demand: 0, prefetch: 0, background: 0 };
  const stalls = { count: 0, totalMs: 0, longestMs: 0 };
  let spans = 0;
  let failures = 0;
  for (const event of events) {
    switch (event.kind) {
      case 'fetched':
        spans++;
        bytes[event.source] += event.bytes;
        byPriority[event.priority] += event.bytes;
        break;
      case 'stalled':
        stalls.count++;
        stalls.totalMs += event.waitedMs;
        stalls.longestMs = Math.max(stalls.longestMs, event.waitedMs);
        break;
      case 'failed':
        failures++;
        break;
    }
  }
  return { fetched: { spans, bytes, byPriority }, stalls, failures };
}

function textOf({ image, exitCode, totalMs, stages, fetched, stalls, failures }: StartReport): string {
  const { bytes, byPriority } = fetched;
  return [
    '',
    `${image}: exit code ${exitCode} after ${Math.round(totalMs)} ms`,
    waterfall(stages),
    `fetched ${fetched.spans} spans: ${byteText(bytes.registry)} from the registry, ${byteText(bytes.peer)} from peers ` +
      `(${byteText(byPriority.demand)} on demand, ${byteText(byPriority.prefetch)} ahead, ${byteText(byPriority.background)} in the background)`,
    `${stalls.count} reads waited, ${Math.round(stalls.totalMs)} ms in all, the longest ${Math.round(stalls.longestMs)} ms` +
      (failures === 0 ? '' : `; ${failures} failed fetches, see the agent's log`),
  ].join('\n');
}

async function abortable<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted();
  return await new Promise<T>((resolve, reject) => {
    const abort = () => reject(signal.reason);
    signal.addEventListener('abort', abort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
  });
}
