import { readFileSync } from 'node:fs';
import { setImmediate as turn, setTimeout as sleep } from 'node:timers/promises';
import { ContainerdError } from '#shared/containerd/containerd-error.ts';
import type { AnswerProbe } from './answer-probe.ts';
import type { TestKindling } from './kindling.ts';
import type { Moment } from './long-reads.ts';
import { monotonicMs } from './monotonic-clock.ts';
import type { Aim, KillKind, OperationTimes } from './operation-times.ts';

export interface Kill {
  readonly kind: KillKind;
  /** Whether it verifiably fell within an operation of this kind: begun, and not answered when the process was dead. */
  readonly inside: boolean;
  /** From its death to the first answer of a successor; undefined where it did not serve. In a take-over: from the first death. */
  readonly gapMs: number | undefined;
}

/** How an operation that the agent was killed in ended: with an answer, or with none so that its client tries again. */
export type Outcome = 'answered' | 'lost';

const SERVING_TIMEOUT_MS = 60_000;
const POLL_MS = 2;

/**
 * Kills the agent with -9 within operations that a test drives: at a moment drawn evenly from how long the operation took when it
 * was left alone.
 */
export class AimedKills {
  readonly kills: Kill[] = [];
  /** When what died, for a reader that waited. */
  readonly deaths: Moment[] = [];
  readonly #kindling: TestKindling;
  readonly #probe: AnswerProbe;
  readonly #times: OperationTimes;

  constructor(kindling: TestKindling, probe: AnswerProbe, times: OperationTimes) {
    this.#kindling = kindling;
    this.#probe = probe;
    this.#times = times;
  }

  /** Kills the agent within the operation. @returns how that ended */
  async shoot(aim: Aim, signal: AbortSignal): Promise<Outcome> {
    const delayMs = this.#times.momentWithin(aim.kind);
    const pid = await this.#serving(signal);
    let result: { readonly atMs: number; readonly error?: unknown } | undefined;
    const operation = aim.begin().then(
      () => {
        result = { atMs: monotonicMs() };
      },
      (error: unknown) => {
        result = { atMs: monotonicMs(), error };
      },
    );
    const soon = (): boolean => result !== undefined || (aim.begun?.() ?? true);
    while (!soon()) {
      signal.throwIfAborted();
      await turn();
    }
    const begunAt = monotonicMs();
    if (delayMs > POLL_MS) await sleep(delayMs - POLL_MS);
    while (monotonicMs() - begunAt < delayMs) await turn();
    const wasUnderWay = result === undefined;
    const diedAtMs = await this.#kill(pid, aim.kind, signal);
    const { seenAtMs } = await this.#untilServing(pid, diedAtMs, signal);
    await within(operation, SERVING_TIMEOUT_MS, `an answer to ${aim.kind}`);
    const { atMs, error } = result ?? { atMs: 0 };
    if (error !== undefined && !isUnavailable(error)) throw error;
    const outcome: Outcome = error === undefined ? 'answered' : 'lost';
    if (!wasUnderWay) this.#times.note(aim.kind, atMs - begunAt);
    // An answer before there was a successor is one of the dead agent that was still on its way.
    const unanswered = wasUnderWay && (outcome === 'lost' || atMs > seenAtMs);
    const inside = unanswered && ((await aim.confirm?.()) ?? true);
    await this.#record(aim.kind, inside, diedAtMs, signal);
    return outcome;
  }

  /** Kills whatever the agent is doing. Also notes how long the take-over takes. */
  async anything(signal: AbortSignal): Promise<void> {
    const pid = await this.#serving(signal);
    const diedAtMs = await this.#kill(pid, 'anything', signal);
    const { seenAtMs, servingAtMs } = await this.#untilServing(pid, diedAtMs, signal);
    this.#times.note('take-over', servingAtMs - seenAtMs);
    await this.#record('anything', true, diedAtMs, signal);
  }

  /** Kills the agent, and its successor while that takes over. */
  async takeOver(signal: AbortSignal): Promise<void> {
    const first = await this.#serving(signal);
    const diedAtMs = await this.#kill(first, 'anything', signal);
    const second = await this.#until('a successor', signal, async () =>
      (await this.#kindling.agentPids()).find((pid) => pid !== first),
    );
    await sleep(this.#times.momentWithin('take-over'));
    await this.#kill(second, 'take-over', signal);
    await this.#untilServing(second, diedAtMs, signal);
    // The keeper says one thing after the other: what it said of the second is here as well.
    await this.#serving(signal);
    this.kills.push({ kind: 'anything', inside: true, gapMs: undefined });
    await this.#record('take-over', !this.#kindling.hasServed(second), diedAtMs, signal);
  }

  /** Kills the agent or the one that is to replace it, while it is replaced. */
  async reload(signal: AbortSignal): Promise<void> {
    const old = await this.#serving(signal);
    const loading = this.#count('Upgrade: loading the new agent');
    await this.#kindling.client.reload(signal);
    await this.#until(
      'the keeper to load another agent',
      signal,
      () => this.#count('Upgrade: loading the new agent') > loading || undefined,
    );
    await sleep(this.#times.momentWithin('reload'));
    const pids = await this.#until('an agent', signal, async () => {
      const found = await this.#kindling.agentPids();
      return found.length > 0 ? found : undefined;
    });
    const victim = pids[Math.floor(Math.random() * pids.length)] ?? old;
    const served = this.#kindling.hasServed(victim);
    const diedAtMs = await this.#kill(victim, 'reload', signal);
    await this.#until('one agent that serves', signal, async () => {
      const left = await this.#kindling.agentPids();
      return (left.length === 1 && left[0] !== undefined && this.#kindling.hasServed(left[0])) || undefined;
    });
    // The one that replaces the old one has not served, or the old one has not been replaced.
    const inside = victim === old || !this.#kindling.hasServed(victim);
    await this.#record('reload', inside, served ? diedAtMs : undefined, signal);
  }

  async #kill(pid: number, kind: KillKind, signal: AbortSignal): Promise<number> {
    const atMs = await kill(pid, signal);
    this.deaths.push({ atMs, what: `killed within ${kind}` });
    return atMs;
  }

  /** The one that serves. After a reload that was cut short the next one may just be coming. */
  async #serving(signal: AbortSignal): Promise<number> {
    return await this.#until('an agent', signal, async () => {
      const pid = await this.#kindling.agentPid();
      return pid !== undefined && this.#kindling.hasServed(pid) ? pid : undefined;
    });
  }

  /** When another agent was first seen, and when it served. */
  async #untilServing(
    old: number,
    diedAtMs: number,
    signal: AbortSignal,
  ): Promise<{ readonly seenAtMs: number; readonly servingAtMs: number }> {
    const seenAtMs = await this.#until('a successor', signal, async () => {
      const pid = await this.#kindling.agentPid();
      return pid !== undefined && pid !== old ? monotonicMs() : undefined;
    });
    await this.#orTell('another agent that serves', signal, async (bounded) => {
      await this.#kindling.untilServing(old, bounded);
    });
    return { seenAtMs: Math.max(seenAtMs, diedAtMs), servingAtMs: monotonicMs() };
  }

  async #record(kind: KillKind, inside: boolean, diedAtMs: number | undefined, signal: AbortSignal): Promise<void> {
    const gapMs =
      diedAtMs === undefined
        ? undefined
        : await this.#orTell('an answer to the probe', signal, async (bounded) => {
            return await this.#probe.untilAnswer(diedAtMs, bounded);
          });
    this.kills.push({ kind, inside, gapMs });
  }

  async #until<T>(what: string, signal: AbortSignal, look: () => Promise<T | undefined> | T | undefined): Promise<T> {
    const deadline = monotonicMs() + SERVING_TIMEOUT_MS;
    for (;;) {
      const found = await look();
      if (found !== undefined) return found;
      if (monotonicMs() > deadline) throw new Error(`Waited ${SERVING_TIMEOUT_MS} ms for ${what}\n${this.#story()}`);
      await sleep(POLL_MS, undefined, { signal });
    }
  }

  /** @throws Error that tells what went before, when the work takes too long */
  async #orTell<T>(what: string, signal: AbortSignal, work: (bounded: AbortSignal) => Promise<T>): Promise<T> {
    const timeout = AbortSignal.timeout(SERVING_TIMEOUT_MS);
    try {
      return await work(AbortSignal.any([signal, timeout]));
    } catch (error) {
      if (signal.aborted || !timeout.aborted) throw error;
      throw new Error(`Waited ${SERVING_TIMEOUT_MS} ms for ${what}\n${this.#story()}`, { cause: error });
    }
  }

  /** What the keeper said of late, for a failure. */
  #story(): string {
    const events = this.#kindling.keeperEvents.slice(-20).map(({ message, agent }) => `${agent ?? ''} ${message}`);
    return `${events.join('\n')}\n${this.#kindling.log.slice(-4_000)}`;
  }

  #count(message: string): number {
    return this.#kindling.keeperEvents.filter((event) => event.message === message).length;
  }
}

/** Kills it and waits until it is dead. @returns when that was seen, in monotonic ms */
async function kill(pid: number, signal: AbortSignal): Promise<number> {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It ended by itself: a reload.
  }
  while (lives(pid)) {
    signal.throwIfAborted();
    await turn();
  }
  return monotonicMs();
}

/** A zombie answers nobody: only a thread of it may still wait in the kernel. */
function lives(pid: number): boolean {
  try {
    return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
  } catch {
    return false;
  }
}

/** The agent went away before it had answered. */
export class UnansweredError extends Error {
  override readonly name = 'UnansweredError';
  readonly code = 'unanswered';
}

/** What callers try again, as the kubelet does. */
export function isUnavailable(error: unknown): boolean {
  if (error instanceof UnansweredError) return true;
  // containerd answers a List so, by words alone.
  return error instanceof ContainerdError && (error.retryable || error.message.endsWith(': unavailable'));
}

async function within<T>(promise: Promise<T>, ms: number, what: string): Promise<T> {
  const timeout = AbortSignal.timeout(ms);
  return await Promise.race([
    promise,
    new Promise<never>((_, reject) =>
      timeout.addEventListener('abort', () => reject(new Error(`Waited ${ms} ms for ${what}`)), { once: true }),
    ),
  ]);
}
