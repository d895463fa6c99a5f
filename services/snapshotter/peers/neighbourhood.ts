import type { Digest } from '#shared/digest/digest.ts';
import { DISTRIBUTION_LIMITS, type NodeRecord } from '#shared/distribution/messages.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import type { BadPeers } from './bad-peers.ts';
import type { DistributorLink } from './distributor-link.ts';
import type { Membership } from './membership.ts';
import type { PeerClient } from './peer-client.ts';
import type { PeerMetrics } from './peer-metrics.ts';
import type { SourceRates } from './source-rates.ts';
import type { SpanPicker } from './span-picker.ts';

export interface Neighbour {
  readonly record: NodeRecord;
  readonly stop: AbortController;
  /** Transfers in a row that failed. */
  failures: number;
  /** Spans in a row that it said to have and had not. */
  absent: number;
  /** When it last said something, if only that it is there. */
  heardMs: number;
  /** Since when nothing has come that was asked from it; undefined = nothing is asked, and it was not too busy the last time. */
  owesMs: number | undefined;
}

const MAX_NEIGHBOURS = 40;
/** One that was lost is not asked again before this. */
const AVOID_MS = 5_000;
/** One that so often has not got what it says it has is avoided for so long: what it holds comes and goes, or it lies. */
const ABSENT_TIMES = 4;
const ABSENT_MS = 30_000;
const AVOIDED_REMEMBERED = 256;

export interface NeighbourhoodOptions {
  /** This node. */
  readonly self: string;
  readonly layer: Digest;
  readonly spanCount: number;
  readonly picker: SpanPicker<string>;
  readonly client: PeerClient;
  readonly badPeers: BadPeers;
  readonly rates: SourceRates;
  readonly membership: Membership;
  readonly link: DistributorLink;
  readonly metrics: PeerMetrics;
  /** What the neighbours have has changed. */
  readonly changed: () => void;
  readonly logger: Logger;
}

/** The nodes that one layer is shared with: follows what each of them has, and tells the picker. */
export class Neighbourhood {
  readonly #options: NeighbourhoodOptions;
  readonly #neighbours = new Map<string, Neighbour>();
  readonly #avoided = new Map<string, number>();
  readonly #running = new Set<Promise<void>>();
  #closed = false;

  constructor(options: NeighbourhoodOptions) {
    this.#options = options;
  }

  get size(): number {
    return this.#neighbours.size;
  }

  get(node: string): Neighbour | undefined {
    return this.#neighbours.get(node);
  }

  /** Nodes from which nothing is to be had, since they are blocked or were lost a moment ago. As many as a message holds. */
  lost(): string[] {
    const now = performance.now();
    const avoided = Array.from(this.#avoided).flatMap(([node, untilMs]) => (untilMs > now ? [node] : []));
    const lost = new Set([...avoided.toReversed(), ...this.#options.badPeers.blocked(now)]);
    return [...lost].slice(0, DISTRIBUTION_LIMITS.avoided);
  }

  /** Those of the nodes from which nothing comes that was asked, or so slowly that so many bytes take longer than `ms`. */
  late(nodes: readonly string[], bytes: number, ms: number, nowMs: number): string[] {
    const { rates } = this.#options;
    return nodes.filter((node) => {
      const owesMs = nowMs - (this.#neighbours.get(node)?.owesMs ?? nowMs);
      return owesMs >= ms / 2 || (rates.msFor(node, bytes) ?? 0) > ms;
    });
  }

  /** Nodes from which nothing is to be had in good time. As many as a message holds. */
  slow(): string[] {
    const { rates } = this.#options;
    const slow = Array.from(this.#neighbours.keys()).filter((node) => rates.isSlow(node));
    return slow.slice(0, DISTRIBUTION_LIMITS.avoided);
  }

  /** False: it cannot be one, or was lost a moment ago. */
  add(record: NodeRecord): boolean {
    const { self, badPeers, picker } = this.#options;
    const { node } = record;
    if (this.#neighbours.has(node)) return true;
    const now = performance.now();
    if (node === self || this.#closed || this.#neighbours.size >= MAX_NEIGHBOURS) return false;
    if (badPeers.isBlocked(node, now) || (this.#avoided.get(node) ?? 0) > now) return false;
    this.#avoided.delete(node);
    const neighbour = { record, stop: new AbortController(), failures: 0, absent: 0, heardMs: now, owesMs: undefined };
    this.#neighbours.set(node, neighbour);
    picker.addNeighbour(node);
    const following = this.#follow(neighbour);
    this.#running.add(following);
    void following.finally(() => this.#running.delete(following));
    return true;
  }

  /** It has sent wrong bytes, of whichever span: nothing is asked from it for a while, and the distributor hears of it. */
  block(node: string): void {
    const { badPeers, metrics, logger, layer, link, membership } = this.#options;
    logger.error({ node, layer }, 'A peer has sent wrong bytes: it is blocked');
    metrics.badPeers.inc();
    badPeers.block(node, performance.now());
    this.drop(node);
    const { reporter } = membership;
    if (reporter !== undefined) link.send({ kind: 'bad', node: link.record.node, layer, suspect: node, reporter });
  }

  /** It has not got a span that it said to have. */
  absent(node: string): void {
    const neighbour = this.#neighbours.get(node);
    if (neighbour === undefined || ++neighbour.absent < ABSENT_TIMES) return;
    this.#options.logger.debug({ node, layer: this.#options.layer }, 'A neighbour has not got what it says it has');
    this.drop(node, ABSENT_MS);
  }

  drop(node: string, avoidMs: number = AVOID_MS): void {
    const neighbour = this.#neighbours.get(node);
    if (neighbour === undefined) return;
    this.#neighbours.delete(node);
    this.#avoided.delete(node);
    this.#avoided.set(node, performance.now() + avoidMs);
    for (const oldest of this.#avoided.keys()) {
      if (this.#avoided.size <= AVOIDED_REMEMBERED) break;
      this.#avoided.delete(oldest);
    }
    this.#options.picker.removeNeighbour(node);
    neighbour.stop.abort(new Error('No neighbour any more'));
    this.#options.changed();
  }

  async close(): Promise<void> {
    this.#closed = true;
    for (const { stop } of this.#neighbours.values()) stop.abort(new Error('The swarm is closing'));
    await Promise.allSettled(this.#running);
  }

  async #follow(neighbour: Neighbour): Promise<void> {
    const { client, layer, spanCount, picker, membership, changed, logger } = this.#options;
    const { record, stop } = neighbour;
    try {
      await client.residency(
        record,
        { layer, capability: membership.capability ?? '', spanCount },
        (changes) => {
          neighbour.heardMs = performance.now();
          for (const { span, has } of changes) picker.mark(record.node, span, has);
          if (changes.length > 0) changed();
        },
        stop.signal,
      );
    } catch (error) {
      if (!stop.signal.aborted) logger.debug({ err: error, node: record.node }, 'A neighbour is lost');
    }
    if (this.#neighbours.get(record.node) === neighbour) this.drop(record.node);
  }
}
