/** How long readers wait for what others are to bring. */
export const PATIENCE_LIMITS = {
  /**
   * Then the distributor is asked for another who brings it, or for the lease: of all nodes that wait for the same it lets one read.
   * As soon as transfers are late here, or reads from the registry take usually, within these bounds.
   */
  leastAskMs: 500,
  mostAskMs: 1_500,
  /** While no more is known of the registry than that peers are late. */
  peersAskMs: 1_000,
  /** Of a usual read. */
  registryFactor: 2,
  /** Then it is read from the registry here, whoever was to bring it. */
  readMs: 2_000,
  /** After the distributor was asked there is at least so long for what that brings. */
  answerMs: 500,
  /** What nobody waits for is read here after this long without any progress. */
  aheadMs: 8_000,
} as const;

export interface UsualTimes {
  /** When a transfer from a peer is late. */
  readonly lateMs: number;
  /** Of a read from the registry; undefined = not known. */
  readonly registryMs: number | undefined;
}

/** How long a reader waits before the distributor is asked for another source. */
export function askMs({ lateMs, registryMs }: UsualTimes): number {
  const { leastAskMs, mostAskMs, peersAskMs, registryFactor } = PATIENCE_LIMITS;
  const usual = Math.max(Math.min(peersAskMs, lateMs), registryFactor * (registryMs ?? 0));
  return Math.min(mostAskMs, Math.max(leastAskMs, usual));
}

/**
 * What is done about a span of one layer for which a reader waits too long: first the distributor is asked, so that one of those who wait
 * reads and not all; if that does not help in time, or there is no distributor, it is read here. Pure.
 */
export class ReaderPatience {
  readonly #askedMs = new Map<number, number>();

  /**
   * `usual` undefined = no distributor answers. `ask`: as soon as neighbours are known that let us wait, without those; until `asked`.
   */
  next(span: number, waitedMs: number, nowMs: number, usual: UsualTimes | undefined): 'wait' | 'ask' | 'read' {
    const { readMs, answerMs } = PATIENCE_LIMITS;
    const askedMs = this.#askedMs.get(span);
    if (usual !== undefined && askedMs === undefined) {
      return waitedMs < askMs(usual) ? 'wait' : 'ask';
    }
    if (waitedMs <= readMs) return 'wait';
    return usual !== undefined && nowMs - (askedMs ?? nowMs) < answerMs ? 'wait' : 'read';
  }

  /** The distributor is asked about the span, or need not be. */
  asked(span: number, nowMs: number): void {
    this.#askedMs.set(span, nowMs);
  }

  /** Nobody waits for the span any more. */
  forget(span: number): void {
    this.#askedMs.delete(span);
  }
}
