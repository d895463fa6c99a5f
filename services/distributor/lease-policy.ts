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
  /** Leases that are out. */
  readonly outstanding: number;
  /** Some of those that wait, at random. */
  readonly waiting: readonly WaitingNode[];
  /** Spans that somebody wants, nobody has and nobody fetches; the first to be wanted first. */
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
  /** A lease not renewed by its holder in this time is given on. */
  ttlMs: 3_000,
} as const;

/**
 * Who reads what from the registry: each span once, by different nodes, so that the pieces of a layer enter the swarm in
 * different places; the least busy of a few first, since a node that is downloading already would share its link. Pure.
 */
export function chooseLeases(
  view: LeaseView,
  random: () => number,
  limits: { readonly outstanding: number; readonly samples: number; readonly alone: number } = LEASE_LIMITS,
): Grant[] {
  const waiting = [...view.waiting];
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
