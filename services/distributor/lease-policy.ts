/** A node that would fetch from the registry now. */
export interface WaitingNode {
  readonly node: string;
  /** Downloads it has under way. */
  readonly load: number;
  /** Spans it would take at once. */
  readonly room: number;
}

/** What the policy looks at: a small part of what is known of one layer. */
export interface LeaseView {
  /** Nodes that want or have the layer. */
  readonly members: number;
  /** Leases that are out and not too old. */
  readonly outstanding: number;
  /** Some of those that wait, at random. */
  readonly waiting: readonly WaitingNode[];
  /** Nodes with leases that are too old. */
  readonly late: readonly string[];
  /** Spans that somebody wants, nobody has and nobody fetches, or only one who is slow; the first to be wanted first. */
  readonly unread: readonly number[];
}

export interface Grant {
  readonly node: string;
  readonly spans: readonly number[];
}

export const LEASE_LIMITS = {
  /**
   * Leases of a layer out at a time. The registry's link must never idle while spans are unread, and every span that is read
   * late by a slow node is late for everybody: few, and more than one.
   */
  outstanding: 8,
  /** Of those that wait, this many are compared and the least busy one gets the lease. */
  samples: 8,
  /** Spans that a node which is alone gets at once. */
  alone: 64,
  /** A lease not renewed by its holder in this time is over. */
  ttlMs: 4_000,
} as const;

/** How long leases last. */
export interface LeaseTerms {
  /** Since it was given or renewed. */
  readonly ttlMs: number;
  /**
   * Since it was given, or its holder had read another span: from then on also another node may read, since its holder is too slow for
   * those who wait.
   */
  readonly ageMs: number;
}

export const AGE_LIMITS = {
  /** Of the median read, as long as the latest ones took from the lease, or from the one before, to the verified span. */
  factor: 4,
  /** Whatever is usual: on a busy machine any read takes so long now and then, and each that is given on too soon is done twice. */
  leastMs: 2_000,
  mostMs: 12_000,
  /** While too little is known. */
  unknownMs: 6_000,
  /** Reads that the median is of, and fewest of them. */
  remembered: 32,
  known: 4,
} as const;

/**
 * Tells slow holders by how long reads take of late: where all links are narrow or all machines are busy a long read is none that
 * another node would do sooner. Pure.
 */
export class LeaseAges {
  readonly #tookMs: number[] = [];

  took(ms: number): void {
    this.#tookMs.push(ms);
    if (this.#tookMs.length > AGE_LIMITS.remembered) this.#tookMs.shift();
  }

  get terms(): LeaseTerms {
    const { factor, leastMs, mostMs, unknownMs, known } = AGE_LIMITS;
    const sorted = this.#tookMs.toSorted((a, b) => a - b);
    const medianMs = sorted[sorted.length >> 1];
    const learned = medianMs === undefined || sorted.length < known ? unknownMs : factor * medianMs;
    return { ttlMs: LEASE_LIMITS.ttlMs, ageMs: Math.min(mostMs, Math.max(leastMs, learned)) };
  }
}

/**
 * Who reads what from the registry: each span once, by different nodes, so that the pieces of a layer enter the swarm in
 * different places; the least busy of a few first, since a node that is downloading already would share its link; and one that is late
 * with another only where nobody else waits. Pure.
 */
export function chooseLeases(
  view: LeaseView,
  random: () => number,
  limits: { readonly outstanding: number; readonly samples: number; readonly alone: number } = LEASE_LIMITS,
): Grant[] {
  const late = new Set(view.late);
  const inTime = view.waiting.filter(({ node }) => !late.has(node));
  const waiting = inTime.length > 0 ? inTime : [...view.waiting];
  const [only] = waiting;
  if (view.members <= 1 && only !== undefined) {
    const spans = view.unread.slice(0, Math.min(only.room, limits.alone));
    return spans.length > 0 ? [{ node: only.node, spans }] : [];
  }
  const grants: Grant[] = [];
  for (const span of view.unread) {
    if (view.outstanding + grants.length >= limits.outstanding || waiting.length === 0) break;
    let best = Math.floor(random() * waiting.length);
    for (let i = 1; i < limits.samples; i++) {
      const other = Math.floor(random() * waiting.length);
      if ((waiting[other]?.load ?? 0) < (waiting[best]?.load ?? 0)) best = other;
    }
    const [chosen] = waiting.splice(best, 1);
    if (chosen !== undefined) grants.push({ node: chosen.node, spans: [span] });
  }
  return grants;
}
