export interface NeighbourCandidate {
  readonly node: string;
  readonly zone: string;
  /** Taken only where there are no others. */
  readonly suspected?: boolean;
}

export const NEIGHBOUR_LIMITS = {
  /** Neighbours that a node is given when it joins; as many again come to it from those that join later. */
  given: 10,
  /** Share of them from the node's own zone, as far as there are so many. */
  ownZone: 0.7,
} as const;

/**
 * The neighbours of a node that joins a layer's swarm: some of those that are in it, at random, mostly of its own zone; some of
 * other zones, so that every span crosses over and no zone depends on the registry. Pure.
 */
export function chooseNeighbours(
  self: NeighbourCandidate,
  members: readonly NeighbourCandidate[],
  random: () => number,
  limits: { readonly given: number; readonly ownZone: number } = NEIGHBOUR_LIMITS,
): string[] {
  const others = members.filter(({ node }) => node !== self.node);
  const trusted = others.filter(({ suspected }) => suspected !== true);
  const near = shuffled(
    trusted.filter(({ zone }) => zone === self.zone),
    random,
  );
  const far = shuffled(
    trusted.filter(({ zone }) => zone !== self.zone),
    random,
  );
  const suspects = others.filter(({ suspected }) => suspected === true);
  const fromNear = Math.min(near.length, Math.max(Math.ceil(limits.given * limits.ownZone), limits.given - far.length));
  const chosen = [...near.slice(0, fromNear), ...far.slice(0, limits.given - fromNear), ...shuffled(suspects, random)];
  return chosen.slice(0, limits.given).map(({ node }) => node);
}

function shuffled<T>(items: readonly T[], random: () => number): T[] {
  const left = [...items];
  for (let i = left.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    const [a, b] = [left[i], left[j]];
    if (a !== undefined && b !== undefined) {
      left[i] = b;
      left[j] = a;
    }
  }
  return left;
}
