import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { runTool } from '#test/images/tool.ts';
import { AimedKills, type Kill } from './aimed-kills.ts';
import { AnswerProbe } from './answer-probe.ts';
import type { ChurnImage } from './churn-image.ts';
import { Churn } from './churn.ts';
import type { TestKindling } from './kindling.ts';
import type { TestNode } from './node.ts';
import { leaksBetween, residueOf, type Residue } from './node-residue.ts';
import { explainLongest, type ExplainedRead } from './long-reads.ts';
import { KILL_KINDS, OperationTimes, type Aim, type KillKind } from './operation-times.ts';
import { dropCaches } from './page-cache.ts';
import { SoakReaders, type ReadImage } from './soak-readers.ts';

/** Settings of a node for a soak: what no container needs is evicted at once, and what nobody has read stays away. */
export const SOAK_SETTINGS = { KINDLING_QUOTA: '1', KINDLING_BACKGROUND: 'false' } as const;

/** What is on its way when the soak has ended is no leak; what is still there after this is. */
const SETTLE_MS = 20_000;

const READS_EXPLAINED = 8;

export interface SoakOptions {
  /** At least so many; they come in rounds, with each kind of aim in every round. */
  readonly kills: number;
  /** Pause before a kill that aims at nothing. */
  readonly pauseMs: () => number;
  /** Also within upgrades, which take the longest. */
  readonly reloads: boolean;
  /** Fail where no kill fell within operations of a kind. */
  readonly everyKind: boolean;
  /** Rounds without a kill at the end, in which one agent may show that it keeps something of each. */
  readonly quietRounds: number;
  /** Told of the kills so far after each round. */
  readonly onRound?: (kills: readonly Kill[]) => void;
}

export interface KindFigures {
  readonly kind: KillKind;
  readonly kills: number;
  readonly inside: number;
  /** From the death of a serving agent to its successor's first answer; undefined: none of them served. */
  readonly gapMs: Gap | undefined;
}

export interface Gap {
  readonly median: number;
  readonly p95: number;
  readonly longest: number;
}

export interface SoakResult {
  readonly kills: number;
  readonly kinds: readonly KindFigures[];
  readonly gapMs: Gap | undefined;
  readonly containerRounds: number;
  readonly reads: number;
  readonly bytes: number;
  readonly longestReadMs: number;
  readonly longestReads: readonly ExplainedRead[];
  /** Spans that claimed to be resident at the end, all of them right. */
  readonly verified: { readonly layers: number; readonly spans: number; readonly bytes: number };
  /** Of the node without images and containers, before the soak and after it. */
  readonly memory: { readonly before: Residue['memory']; readonly after: Residue['memory'] };
}

/**
 * Containers and readers read whole images at random, with checksums, while the agent is killed with -9 again and again: at any
 * moment, and within what it does for images that come and go meanwhile. In the end everything is taken away.
 *
 * @param references Images that are read. @param churn The image that comes and goes.
 * @throws Error at the first error or wrong byte that one of them sees, and when something is left in the end
 */
export async function soak(
  node: TestNode,
  references: readonly string[],
  churn: ChurnImage,
  options: SoakOptions,
  signal: AbortSignal,
): Promise<SoakResult> {
  const { kindling, containerd } = node;
  await using stack = new AsyncDisposableStack();
  const churning = stack.use(new Churn(node, churn));
  // Without a kill: the warm-up also tells how long everything takes.
  const times = new OperationTimes();
  await times.measure(await churning.pullAim(signal));
  await churning.removed(signal);
  await quietRound(churning, times, signal);
  if (options.reloads) await measureReload(kindling, times, signal);
  const before = await residueOf(node, signal);

  const images: ReadImage[] = [];
  for (const reference of references) {
    const { chainId } = await kindling.pull(reference, signal);
    await containerd.pull(reference, 'overlayfs', signal);
    const tree = await node.rootfsTree(chainId, 'overlayfs', signal);
    images.push({ reference, chainId, tree });
  }
  const readers = stack.use(await SoakReaders.start(node, images, signal));
  const [layer = ''] = await readdir(join(kindling.dataDir, 'layers'));
  const probe = stack.use(new AnswerProbe(join(kindling.dataDir, 'fuse', `${layer}.img`)));
  const aimed = new AimedKills(kindling, probe, times);
  await killInRounds(aimed, churning, options, signal, () => {
    readers.check();
    probe.check();
  });
  // Everyone must get further after the last one.
  await readers.untilFurther(signal);
  const { totals } = readers;
  const said = kindling.keeperEvents.map(({ atMs, message }) => ({ atMs, what: message }));
  const longestReads = explainLongest(readers.longReads, [...aimed.deaths, ...said], READS_EXPLAINED);
  const verified = await verifyLayers(kindling.dataDir, signal);

  await probe[Symbol.asyncDispose]();
  await readers[Symbol.asyncDispose]();
  for (const { reference } of images) await containerd.removeImage(reference, signal);
  await untilEmpty(node, churning, signal);
  const settled = await residueOf(node, signal);
  for (let round = 0; round < options.quietRounds; round++) await quietRound(churning, times, signal);
  await untilEmpty(node, churning, signal);
  const after = await withoutLeaks(node, [before, settled], signal);
  await restartEmpty(node, signal);

  const kinds = KILL_KINDS.filter((kind) => kind !== 'reload' || options.reloads).map((kind) =>
    figuresOf(kind, aimed.kills),
  );
  const missed = kinds.filter(({ inside }) => inside === 0).map(({ kind }) => kind);
  if (options.everyKind && missed.length > 0) throw new Error(`No kill fell within: ${missed.join(', ')}`);
  return {
    kills: aimed.kills.length,
    kinds,
    gapMs: gapOf(aimed.kills),
    ...totals,
    longestReads,
    verified,
    memory: { before: before.memory, after: after.memory },
  };
}

/** @param check Looks whether all is well with those who read. */
async function killInRounds(
  aimed: AimedKills,
  churn: Churn,
  options: SoakOptions,
  signal: AbortSignal,
  check: () => void,
): Promise<void> {
  const shoot = async (aim: Aim): Promise<void> => {
    await aimed.shoot(aim, signal);
    check();
  };
  while (aimed.kills.length < options.kills) {
    await sleep(options.pauseMs(), undefined, { signal });
    await dropCaches(signal);
    await aimed.anything(signal);
    await shoot(await churn.pullAim(signal));
    await churn.pulled(signal);
    await churn.removed(signal);
    await shoot(await churn.mountAim(signal));
    await churn.pulled(signal);
    await shoot(await churn.readAim(signal));
    await aimed.takeOver(signal);
    await shoot(await churn.commitAim(signal));
    if (options.reloads) await aimed.reload(signal);
    await shoot(await churn.evictionAim(signal));
    await churn.removed(signal);
    check();
    options.onRound?.(aimed.kills);
  }
}

/** What a round does, without a kill. */
async function quietRound(churn: Churn, times: OperationTimes, signal: AbortSignal): Promise<void> {
  await times.measure(await churn.mountAim(signal));
  await churn.pulled(signal);
  await times.measure(await churn.readAim(signal));
  await times.measure(await churn.commitAim(signal));
  await times.measure(await churn.evictionAim(signal));
}

async function measureReload(kindling: TestKindling, times: OperationTimes, signal: AbortSignal): Promise<void> {
  const old = await kindling.agentPid();
  const bounded = AbortSignal.any([signal, AbortSignal.timeout(60_000)]);
  const begin = async (): Promise<void> => {
    await kindling.client.reload(bounded);
    while ((await kindling.agentPids()).includes(old ?? 0)) await sleep(2, undefined, { signal: bounded });
    await kindling.untilServing(old, bounded);
  };
  await times.measure({ kind: 'reload', begin });
}

/** Waits until the agent has let go of everything that nobody needs any more. */
async function untilEmpty(node: TestNode, churn: Churn, signal: AbortSignal): Promise<void> {
  const bounded = AbortSignal.any([signal, AbortSignal.timeout(60_000)]);
  for (;;) {
    await churn.collect(signal);
    const { layersOnDisk, snapshots, snapshotFolders, temporary } = await residueOf(node, signal);
    const left = [...layersOnDisk, ...snapshots, ...snapshotFolders, ...temporary];
    if (left.length === 0) return;
    if (bounded.aborted) throw new Error(`Never let go of: ${left.join(', ')}\n${node.kindling.log.slice(-4_000)}`);
    await sleep(200, undefined, { signal });
  }
}

/** What the node holds once it holds no more than it did before. @throws Error when that does not come about */
async function withoutLeaks(node: TestNode, before: readonly Residue[], signal: AbortSignal): Promise<Residue> {
  const deadline = performance.now() + SETTLE_MS;
  for (;;) {
    const after = await residueOf(node, signal);
    const leaks = new Set(before.flatMap((earlier) => leaksBetween(earlier, after)));
    if (leaks.size === 0) return after;
    if (performance.now() > deadline) throw new Error(`Left after the soak:\n  ${[...leaks].join('\n  ')}`);
    // A connection that is being handed on, a helper that is ending.
    await sleep(500, undefined, { signal });
  }
}

/** Ends the node as an operator does, with nothing that could hold it, and starts it again: it must have forgotten everything. */
async function restartEmpty(node: TestNode, signal: AbortSignal): Promise<void> {
  const { kindling } = node;
  await kindling.stop();
  if (kindling.keeperEvents.some(({ message }) => message.startsWith('Containers depend on the session'))) {
    throw new Error('The keeper waited for containers although there are none');
  }
  await node.startKindlingAgain(signal);
  const { layersOnDisk, layersKnown, snapshots } = await residueOf(node, signal);
  const left = [...layersOnDisk, ...layersKnown, ...snapshots];
  if (left.length > 0) throw new Error(`Still there after a restart: ${left.join(', ')}`);
}

/** @throws Error when a span is not what its index says */
async function verifyLayers(dataDir: string, signal: AbortSignal): Promise<SoakResult['verified']> {
  const main = join(import.meta.dirname, 'verify-layers-main.ts');
  const text = await runTool(process.execPath, ['--disable-warning=ExperimentalWarning', main, dataDir], signal);
  const { problems, ...sums } = JSON.parse(text) as SoakResult['verified'] & { problems: string[] };
  if (problems.length > 0) throw new Error(`Resident, but not right:\n  ${problems.join('\n  ')}`);
  return sums;
}

function figuresOf(kind: KillKind, kills: readonly Kill[]): KindFigures {
  const own = kills.filter((kill) => kill.kind === kind);
  return { kind, kills: own.length, inside: own.filter(({ inside }) => inside).length, gapMs: gapOf(own) };
}

function gapOf(kills: readonly Kill[]): Gap | undefined {
  const gaps = kills
    .map(({ gapMs }) => gapMs)
    .filter((ms) => ms !== undefined)
    .sort((a, b) => a - b);
  const at = (share: number): number =>
    Math.round(gaps[Math.min(gaps.length - 1, Math.floor(gaps.length * share))] ?? 0);
  return gaps.length === 0 ? undefined : { median: at(0.5), p95: at(0.95), longest: at(1) };
}
