import type { Claim, Claims } from '#shared/bus/bus.ts';
import { hexOf } from '#shared/digest/digest.ts';
import type { SpanMap } from '#shared/layer/span-map.ts';
import { adjacentRuns } from './adjacent-runs.ts';

/** Another node that has the turn is asked about again after this. */
const LOOK_MS = 1_000;
/** Nothing has come for so long, though another node has the turn: then one more may read as well, */
const PATIENCE_MS = 15_000;
/** and after each of these another one, */
const NEXT_MS = 5_000;
/** until so many have had their turn; then all that still wait. */
const TURNS = 4;
/** Nothing has come for so long, though neighbours have what is missing: then it is read all the same. */
const COMING_MS = 5_000;

export interface StreamTurnsDeps {
  readonly claims: Claims;
  /** Whether other nodes can be reached: else there is nobody to wait for. */
  readonly together: () => boolean;
  /** When something of the layer came last, or was wanted first. */
  readonly progressMs: () => number;
  /** Whether the span is to be read: wanted, and not on its way. */
  readonly isWanted: (span: number) => boolean;
  /** Whether a neighbour has the span. */
  readonly isNear: (span: number) => boolean;
  /** These are being read now. */
  readonly fetching: (spans: readonly number[]) => void;
  /** These are not, since another node reads their stream: it is to be asked. */
  readonly elsewhere: (spans: readonly number[]) => void;
  readonly stopping: AbortSignal;
  /** Milliseconds of a clock that only goes forward. */
  readonly now?: () => number;
}

/**
 * Who reads what only comes as a whole, one after the other from a front of the blob: one node of the cluster at a time, and then all of
 * it. The others get it from that node as it passes there.
 */
export class StreamTurns {
  readonly #map: SpanMap;
  readonly #deps: StreamTurnsDeps;
  readonly #now: () => number;
  /** By the first span of the stream: until when it is not asked for, since another node reads it; `ours`: this one does. */
  readonly #states = new Map<number, number | 'ours' | 'asking'>();

  constructor(map: SpanMap, deps: StreamTurnsDeps) {
    this.#map = map;
    this.#deps = deps;
    this.#now = deps.now ?? (() => performance.now());
  }

  /** Another node reads the span, as far as is known: it must not be chosen to be read here now. */
  isElsewhere(span: number): boolean {
    const stream = this.#map.streamOf(span);
    return stream !== undefined && this.#isOut(stream[0]);
  }

  /** Has the spans read (`read` takes adjacent ones), and with each part of a stream all of it; nothing where another node does that. */
  async read(spans: readonly number[], read: (spans: readonly number[]) => Promise<void>): Promise<void> {
    const alone = spans.filter((span) => this.#map.streamOf(span) === undefined);
    const streams = Map.groupBy(
      spans.filter((span) => this.#map.streamOf(span) !== undefined),
      (span) => this.#map.streamOf(span)?.[0] ?? span,
    );
    const parts = Array.from(adjacentRuns(alone, this.#map, Infinity), async (run) => await read(run));
    for (const [first, asked] of streams) {
      const last = this.#map.streamOf(first)?.[1] ?? first;
      parts.push(
        this.#readStream(first, last, read).then((isOurs) => {
          if (!isOurs) this.#deps.elsewhere(asked);
        }),
      );
    }
    await Promise.all(parts);
  }

  /** False: another node reads it. */
  async #readStream(first: number, last: number, read: (spans: readonly number[]) => Promise<void>): Promise<boolean> {
    if (this.#isOut(first)) return false;
    const isOurs = this.#states.get(first) === 'ours';
    if (!isOurs && this.#allComes(first, last)) {
      this.#states.set(first, this.#now() + LOOK_MS);
      return false;
    }
    const claim = isOurs ? undefined : await this.#claim(first);
    if (claim === 'elsewhere') return false;
    try {
      this.#states.set(first, 'ours');
      const spans = this.#wanted(first, last).filter((span) => !this.#comes(span));
      if (spans.length === 0) return true;
      this.#deps.fetching(spans);
      await read(spans);
      return true;
    } finally {
      if (!isOurs) this.#states.delete(first);
      await claim?.[Symbol.asyncDispose]();
    }
  }

  #wanted(first: number, last: number): number[] {
    const spans: number[] = [];
    for (let span = first; span <= last; span++) if (this.#deps.isWanted(span)) spans.push(span);
    return spans;
  }

  /** What one who has read it gives away: to read the blob from its front again would seldom be faster. */
  #comes(span: number): boolean {
    return this.#now() - this.#deps.progressMs() < COMING_MS && this.#deps.isNear(span);
  }

  #allComes(first: number, last: number): boolean {
    const wanted = this.#wanted(first, last);
    return wanted.length > 0 && wanted.every((span) => this.#comes(span));
  }

  #isOut(first: number): boolean {
    const state = this.#states.get(first);
    return state === 'asking' || (typeof state === 'number' && state > this.#now());
  }

  /** undefined: read without one, since nobody can be asked or whoever has it brings nothing. */
  async #claim(first: number): Promise<Claim | 'elsewhere' | undefined> {
    if (!this.#deps.together()) return undefined;
    const turn = this.#turn();
    if (turn >= TURNS) return undefined;
    this.#states.set(first, 'asking');
    let claim: Claim | undefined;
    try {
      const name = `stream-${hexOf(this.#map.layer)}-${first}`;
      claim = await this.#deps.claims.claim(turn === 0 ? name : `${name}-${turn}`, this.#deps.stopping);
    } catch {
      this.#states.delete(first);
      return undefined;
    }
    if (claim !== undefined) return claim;
    this.#states.set(first, this.#now() + LOOK_MS);
    return 'elsewhere';
  }

  /** Each is held apart from those before it, whose holders still read. */
  #turn(): number {
    const late = this.#now() - this.#deps.progressMs() - PATIENCE_MS;
    return late < 0 ? 0 : 1 + Math.floor(late / NEXT_MS);
  }
}
