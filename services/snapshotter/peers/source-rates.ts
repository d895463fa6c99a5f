/**
 * Payload of one transfer, as `PICK_LIMITS.groupBytes`: what sources are compared by. What is smaller says more of delays than of a rate:
 * it counts as though it had been so large.
 */
const GROUP_BYTES = 512 * 1024;
/** What an older measurement still counts beside the next. */
const KEPT = 0.7;
/** A rate not measured for so long is forgotten: whoever was slow is tried again. */
const KNOWN_MS = 30_000;
const REMEMBERED = 1024;
/**
 * A peer that needs no longer than this for a group is never slow, whatever the registry does: on a busy machine any takes a
 * while now and then, and what is read elsewhere is read twice.
 */
const SLOW_MS = 2_500;
/** One that needs longer is, where it is slower than the registry by this factor; while that is not known, than other peers. */
const SLOW_FACTOR = 4;
/** A peer of which nothing has come for so long that was asked for is slow, until something does. */
const STALLED_MS = 2_500;
/** A registry that has failed is no better than any peer for so long. */
const FAILED_MS = 10_000;

/** Bytes and the time they took, of late, the older the less. */
interface Rate {
  readonly bytes: number;
  readonly ms: number;
  readonly atMs: number;
}

interface Measured extends Rate {
  /** All that has come. */
  readonly totalBytes: number;
}

/** What has come from one peer since this agent's start. */
export interface Feed {
  readonly node: string;
  readonly bytes: number;
}

/**
 * How fast this node gets bytes from each peer, and from the registry: learned from transfers, all layers together. Times are
 * those of one clock, milliseconds.
 */
export class SourceRates {
  readonly #peers = new Map<string, Measured>();
  /** When what has not come was asked for. */
  readonly #stalled = new Map<string, number>();
  readonly #now: () => number;
  #registry: Rate | undefined;
  #registryFailedMs = -Infinity;

  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  took(node: string, bytes: number, ms: number): void {
    this.#stalled.delete(node);
    this.#set(node, added(this.#known(node), bytes, ms, this.#now()), bytes);
  }

  /** A transfer of so many bytes is not over after `ms`: it is no faster than that, whatever it was. */
  atMost(node: string, bytes: number, ms: number): void {
    this.#stalled.set(node, this.#now() - ms);
    const known = this.#known(node);
    const counted = Math.max(GROUP_BYTES, bytes);
    if (known !== undefined && known.bytes / known.ms < counted / ms) return;
    this.#set(node, added(undefined, bytes, ms, this.#now()), 0);
  }

  registryTook(bytes: number, ms: number): void {
    this.#registryFailedMs = -Infinity;
    this.#registry = added(this.#registry, bytes, ms, this.#now());
  }

  registryFailed(): void {
    this.#registryFailedMs = this.#now();
  }

  /** How long so many bytes take from the peer; undefined = not known. */
  msFor(node: string, bytes: number): number | undefined {
    const known = this.#known(node);
    return known === undefined ? undefined : (bytes * known.ms) / known.bytes;
  }

  /** How long a group of spans takes from the registry; undefined = not known. */
  get registryMs(): number | undefined {
    const registry = this.#registry;
    if (registry === undefined || this.#now() - registry.atMs > KNOWN_MS) return undefined;
    return (GROUP_BYTES * registry.ms) / registry.bytes;
  }

  /** So slow that the registry is the better source. */
  isSlow(node: string): boolean {
    const now = this.#now();
    const peerMs = this.msFor(node, GROUP_BYTES);
    if (peerMs === undefined || now - this.#registryFailedMs < FAILED_MS) return false;
    if (now - (this.#stalled.get(node) ?? now) > STALLED_MS) return true;
    if (peerMs <= SLOW_MS) return false;
    const usualMs = this.registryMs ?? this.#medianMs(node);
    return usualMs === undefined || peerMs > SLOW_FACTOR * usualMs;
  }

  /** Who has given most, most first; of those that are remembered. */
  feeds(limit: number): readonly Feed[] {
    const feeds = Array.from(this.#peers, ([node, { totalBytes }]) => ({ node, bytes: totalBytes }));
    return feeds
      .filter(({ bytes }) => bytes > 0)
      .toSorted((a, b) => b.bytes - a.bytes)
      .slice(0, limit);
  }

  #set(node: string, rate: Rate, cameBytes: number): void {
    const totalBytes = (this.#peers.get(node)?.totalBytes ?? 0) + cameBytes;
    this.#peers.delete(node);
    this.#peers.set(node, { ...rate, totalBytes });
    for (const oldest of this.#peers.keys()) {
      if (this.#peers.size <= REMEMBERED) break;
      this.#peers.delete(oldest);
      this.#stalled.delete(oldest);
    }
  }

  /** Of a group, from other peers. */
  #medianMs(but: string): number | undefined {
    const others = Array.from(this.#peers.keys()).flatMap((node) =>
      node === but ? [] : (this.msFor(node, GROUP_BYTES) ?? []),
    );
    return others.toSorted((a, b) => a - b)[others.length >> 1];
  }

  #known(node: string): Measured | undefined {
    const known = this.#peers.get(node);
    return known !== undefined && this.#now() - known.atMs <= KNOWN_MS ? known : undefined;
  }
}

function added(before: Rate | undefined, bytes: number, ms: number, atMs: number): Rate {
  return {
    bytes: (before?.bytes ?? 0) * KEPT + Math.max(GROUP_BYTES, bytes),
    ms: (before?.ms ?? 0) * KEPT + Math.max(1, ms),
    atMs,
  };
}
