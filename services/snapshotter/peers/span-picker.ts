/** What bounds a node's picking. */
export interface PickLimits {
  /** Transfers from peers under way at a time, of one layer. */
  readonly transfers: number;
  /** Transfers from one neighbour at a time. */
  readonly perNeighbour: number;
  /** Transfers that last too long beside them: more, and it is this node's own link that is slow. */
  readonly late: number;
  /** Payload bytes of one transfer: small spans go together up to this. */
  readonly groupBytes: number;
}

/**
 * From simulation (`npm run bench -- sim`): with fewer transfers the links stand idle while requests travel, with more per
 * neighbour the uplinks of those who came first are overloaded.
 */
export const PICK_LIMITS: PickLimits = { transfers: 8, late: 2, perNeighbour: 1, groupBytes: 512 * 1024 };

export interface Pick<N> {
  readonly neighbour: N;
  /** Ascending, adjacent. */
  readonly spans: readonly number[];
  /** Payload of all of them. */
  readonly bytes: number;
  readonly demand: boolean;
}

/** What is known of how fast neighbours are; where all links are alike it is not needed. */
export interface NeighbourSpeeds<N> {
  /** How long so many bytes take from it; undefined = not known. */
  msFor(neighbour: N, bytes: number): number | undefined;
  /** Nothing is taken from it: what only such neighbours have counts as being nowhere. */
  isSlow(neighbour: N): boolean;
}

/** Among holders of a span one is as good as the fastest if it would be done within this factor of its time, */
const AS_GOOD = 3;
/** or within this time. */
const SOON_MS = 200;

interface Neighbour {
  readonly has: Uint8Array;
  transfers: number;
  /** Payload asked for and not here. */
  outstandingBytes: number;
  restUntilMs: number;
}

const IDLE = 0;
const WANTED = 1;
const IN_FLIGHT = 2;

/**
 * Chooses which span of a layer a node takes next from which of its neighbours: what a reader waits for first, else what the
 * fewest neighbours have, ties by chance, so that neighbours soon have different spans to give to each other; and of a span's
 * holders one that will be done about as soon as any, also when it is busy now and another is not. Pure: no clock, no I/O; the
 * simulation runs this very code.
 */
export class SpanPicker<N> {
  readonly #spanCount: number;
  readonly #random: () => number;
  readonly #limits: PickLimits;
  readonly #bytesOf: (span: number) => number;
  readonly #speeds: NeighbourSpeeds<N> | undefined;
  readonly #state: Uint8Array;
  readonly #copies: Uint16Array;
  readonly #neighbours = new Map<N, Neighbour>();
  readonly #demand = new Set<number>();
  /** Spans that are wanted and not in flight, in no order; `#position` tells where a span stands in it. */
  readonly #wanted: Int32Array;
  readonly #position: Int32Array;
  #wantedCount = 0;
  #transfers = 0;
  /** Not over, and not among `#transfers` any more. */
  readonly #late = new Set<Pick<N>>();

  constructor(options: {
    readonly spanCount: number;
    /** Payload bytes of a span. */
    readonly bytesOf: (span: number) => number;
    readonly random: () => number;
    readonly speeds?: NeighbourSpeeds<N>;
    readonly limits?: Partial<PickLimits>;
  }) {
    this.#spanCount = options.spanCount;
    this.#bytesOf = options.bytesOf;
    this.#random = options.random;
    this.#speeds = options.speeds;
    this.#limits = { ...PICK_LIMITS, ...options.limits };
    this.#state = new Uint8Array(options.spanCount);
    this.#copies = new Uint16Array(options.spanCount);
    this.#wanted = new Int32Array(options.spanCount);
    this.#position = new Int32Array(options.spanCount);
  }

  /** Under way and not late. */
  get transfers(): number {
    return this.#transfers;
  }

  get wantedCount(): number {
    return this.#wantedCount;
  }

  get neighbours(): ReadonlySet<N> {
    return new Set(this.#neighbours.keys());
  }

  /** How many neighbours have the span. */
  copies(span: number): number {
    return this.#copies[span] ?? 0;
  }

  /** The neighbours that have the span. */
  holders(span: number): N[] {
    return Array.from(this.#neighbours).flatMap(([name, { has }]) => (has[span] === 1 ? [name] : []));
  }

  isWanted(span: number): boolean {
    return this.#state[span] === WANTED;
  }

  isDemanded(span: number): boolean {
    return this.#demand.has(span);
  }

  /**
   * Wanted spans that no neighbour is known to have, or slow ones only; those that readers wait for first, then ascending. At most
   * `limit`.
   */
  nowhere(limit: number, demandOnly: boolean): number[] {
    const slow = this.#slow();
    const found: number[] = [];
    for (const span of this.#demand) {
      if (found.length >= limit) return found;
      if (this.isWanted(span) && this.#copiesBut(slow, span) === 0) found.push(span);
    }
    if (demandOnly) return found;
    for (let span = 0; span < this.#spanCount && found.length < limit; span++) {
      if (this.isWanted(span) && this.#copiesBut(slow, span) === 0 && !this.#demand.has(span)) found.push(span);
    }
    return found;
  }

  /** Wanted spans that slow neighbours have and no other. At most `limit`. */
  slowOnly(limit: number): number[] {
    const slow = this.#slow();
    const found: number[] = [];
    for (let span = 0; slow.length > 0 && span < this.#spanCount && found.length < limit; span++) {
      if (this.isWanted(span) && this.copies(span) > 0 && this.#copiesBut(slow, span) === 0) found.push(span);
    }
    return found;
  }

  want(span: number, demand: boolean): void {
    const state = this.#state[span];
    if (state === undefined) return;
    if (demand) this.#demand.add(span);
    if (state !== IDLE) return;
    this.#state[span] = WANTED;
    this.#position[span] = this.#wantedCount;
    this.#wanted[this.#wantedCount++] = span;
  }

  /** The span has come, or nobody wants it any more. */
  unwant(span: number): void {
    this.#demand.delete(span);
    if (this.#state[span] === WANTED) this.#take(span);
    this.#state[span] = IDLE;
  }

  addNeighbour(neighbour: N): void {
    if (this.#neighbours.has(neighbour)) return;
    this.#neighbours.set(neighbour, {
      has: new Uint8Array(this.#spanCount),
      transfers: 0,
      outstandingBytes: 0,
      restUntilMs: 0,
    });
  }

  removeNeighbour(neighbour: N): void {
    const known = this.#neighbours.get(neighbour);
    if (known === undefined) return;
    this.#neighbours.delete(neighbour);
    for (let span = 0; span < this.#spanCount; span++) if (known.has[span] === 1) this.#count(span, -1);
  }

  /** The neighbour says that it has the span, or has it no more. */
  mark(neighbour: N, span: number, has: boolean): void {
    const known = this.#neighbours.get(neighbour);
    const before = known?.has[span];
    if (known === undefined || before === undefined || (before === 1) === has) return;
    known.has[span] = has ? 1 : 0;
    this.#count(span, has ? 1 : -1);
  }

  /** The next transfer, counted as begun: `ended` must follow. undefined = nothing to be had now. */
  pick(nowMs: number): Pick<N> | undefined {
    if (this.#wantedCount === 0) return undefined;
    const { transfers, perNeighbour } = this.#limits;
    if (this.#demand.size > 0 && this.#transfers < 2 * transfers) {
      // Beside what is under way: a reader does not wait for what was fetched ahead.
      const free = this.#free(perNeighbour + 1, nowMs);
      for (const span of this.#demand) {
        if (this.#state[span] !== WANTED || this.copies(span) === 0) continue;
        const holder = this.#holder(free, span);
        if (holder !== undefined) return this.#begin(holder, span, true);
      }
    }
    if (this.#transfers >= transfers) return undefined;
    const free = this.#free(perNeighbour, nowMs);
    if (free.length === 0) return undefined;
    let best: [N, Neighbour] | undefined;
    let bestSpan = -1;
    let bestCopies = 0xffff;
    const offset = Math.floor(this.#random() * this.#wantedCount);
    for (let i = 0; i < this.#wantedCount && bestCopies > 1; i++) {
      const span = this.#wanted[(offset + i) % this.#wantedCount] ?? 0;
      const copies = this.#copies[span] ?? 0;
      if (copies === 0 || copies >= bestCopies) continue;
      const holder = this.#holder(free, span);
      if (holder === undefined) continue;
      best = holder;
      bestSpan = span;
      bestCopies = copies;
    }
    return best === undefined ? undefined : this.#begin(best, bestSpan, false);
  }

  /** The transfer lasts too long: others may begin in its stead, and what of it has not come is wanted again. */
  late(pick: Pick<N>, missing: Iterable<number>): void {
    if (!this.#late.has(pick) && this.#late.size < this.#limits.late) {
      this.#late.add(pick);
      this.#transfers--;
    }
    for (const span of missing) this.release(span);
  }

  /** The transfer is over. Spans of it that did not come are wanted again; `restMs` = do not ask there before then. */
  ended(pick: Pick<N>, missing: readonly number[], restUntilMs = 0): void {
    if (!this.#late.delete(pick)) this.#transfers--;
    const neighbour = this.#neighbours.get(pick.neighbour);
    if (neighbour !== undefined) {
      neighbour.transfers--;
      neighbour.outstandingBytes -= pick.bytes;
      neighbour.restUntilMs = Math.max(neighbour.restUntilMs, restUntilMs);
    }
    for (const span of missing) this.release(span);
  }

  /** The span is being fetched in another way than by a pick: from the registry, or from a node that is no neighbour. */
  reserve(span: number): boolean {
    if (this.#state[span] !== WANTED) return false;
    this.#take(span);
    this.#state[span] = IN_FLIGHT;
    return true;
  }

  /** What was reserved did not come: it is wanted again. */
  release(span: number): void {
    if (this.#state[span] !== IN_FLIGHT) return;
    this.#state[span] = IDLE;
    this.want(span, false);
  }

  /** When the first neighbour that rests may be asked again; undefined = none rests. */
  nextRestMs(nowMs: number): number | undefined {
    let soonest: number | undefined;
    for (const { restUntilMs } of this.#neighbours.values()) {
      if (restUntilMs > nowMs && (soonest === undefined || restUntilMs < soonest)) soonest = restUntilMs;
    }
    return soonest;
  }

  #free(transfers: number, nowMs: number): [N, Neighbour][] {
    const free: [N, Neighbour][] = [];
    for (const entry of this.#neighbours) {
      if (entry[1].transfers >= transfers || entry[1].restUntilMs > nowMs) continue;
      if (this.#speeds?.isSlow(entry[0]) !== true) free.push(entry);
    }
    return free;
  }

  #holder(free: readonly [N, Neighbour][], span: number): [N, Neighbour] | undefined {
    const offset = Math.floor(this.#random() * free.length);
    let withinMs: number | undefined;
    for (let i = 0; i < free.length; i++) {
      const entry = free[(offset + i) % free.length];
      if (entry?.[1].has[span] !== 1) continue;
      const ms = this.#doneMs(entry, span);
      if (ms === undefined || ms <= SOON_MS) return entry;
      withinMs ??= AS_GOOD * this.#soonestMs(span);
      if (ms <= withinMs) return entry;
    }
    return undefined;
  }

  /** When the span would be here from that neighbour, behind all that it owes us; undefined = not known. */
  #doneMs([neighbour, known]: [N, Neighbour], span: number): number | undefined {
    return this.#speeds?.msFor(neighbour, known.outstandingBytes + this.#bytesOf(span));
  }

  #soonestMs(span: number): number {
    let soonest = Infinity;
    for (const entry of this.#neighbours) {
      if (entry[1].has[span] === 1) soonest = Math.min(soonest, this.#doneMs(entry, span) ?? Infinity);
    }
    return soonest;
  }

  #slow(): Neighbour[] {
    const speeds = this.#speeds;
    if (speeds === undefined) return [];
    return Array.from(this.#neighbours).flatMap(([name, known]) => (speeds.isSlow(name) ? [known] : []));
  }

  #copiesBut(slow: readonly Neighbour[], span: number): number {
    let copies = this.copies(span);
    for (const { has } of slow) if (has[span] === 1) copies--;
    return copies;
  }

  #begin([neighbour, known]: [N, Neighbour], first: number, demand: boolean): Pick<N> {
    const spans = [first];
    let bytes = this.#bytesOf(first);
    for (let span = first + 1; this.#state[span] === WANTED && known.has[span] === 1; span++) {
      if (bytes + this.#bytesOf(span) > this.#limits.groupBytes) break;
      bytes += this.#bytesOf(span);
      spans.push(span);
    }
    for (const span of spans) this.reserve(span);
    known.outstandingBytes += bytes;
    known.transfers++;
    this.#transfers++;
    return { neighbour, spans, bytes, demand };
  }

  #take(span: number): void {
    const at = this.#position[span] ?? 0;
    const last = this.#wanted[--this.#wantedCount] ?? 0;
    this.#wanted[at] = last;
    this.#position[last] = at;
  }

  #count(span: number, by: 1 | -1): void {
    this.#copies[span] = (this.#copies[span] ?? 0) + by;
  }
}
