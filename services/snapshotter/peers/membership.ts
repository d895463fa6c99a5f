import type { Digest } from '#shared/digest/digest.ts';
import type { JoinReply, NodeRecord } from '#shared/distribution/messages.ts';
import type { SpanSet } from '#shared/distribution/span-set.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import type { LayerOrigin } from '../layers/span-source.ts';
import type { DistributorLink } from './distributor-link.ts';
import type { SpanHolder } from './span-holder.ts';

/** With fewer neighbours more are asked for, at most this often. */
const MIN_NEIGHBOURS = 3;
const REJOIN_MS = 2_000;
/** One that was not let in asks again after this: the registry has been asked in vain. */
const REFUSED_MS = 30_000;
/** A capability is renewed this long before it ends. */
const RENEW_MS = 60_000;

export interface MembershipOptions {
  readonly layer: Digest;
  readonly spanCount: number;
  readonly link: DistributorLink;
  readonly holder: SpanHolder;
  readonly authorizationOf: (repository: string, signal: AbortSignal) => Promise<string | undefined>;
  readonly logger: Logger;
  /** From where this node could have the layer. */
  readonly origins: () => readonly LayerOrigin[];
  /** What it wants and is reading, to be told to the distributor now, */
  readonly saying: () => { readonly wants: SpanSet; readonly fetching: readonly number[] };
  /** which has not heard it. */
  readonly unsaid: () => void;
  readonly joined: (neighbours: readonly NodeRecord[]) => void;
  /** Joining is over, one way or the other. */
  readonly ended: () => void;
}

/** A node's place among those that share one layer: its capability, and how many they are. */
export class Membership {
  readonly #options: MembershipOptions;
  readonly #stopping = new AbortController();
  #joining: Promise<void> | undefined;
  #tried = false;
  #nextMs = -Infinity;
  #joinedMs = -Infinity;
  #expiresMs = 0;
  #capability: string | undefined;
  #reporter: string | undefined;
  #members = 1;

  constructor(options: MembershipOptions) {
    this.#options = options;
  }

  get isJoining(): boolean {
    return this.#joining !== undefined;
  }
  /** undefined = not joined. */
  get capability(): string | undefined {
    return this.#capability;
  }
  /** What reports of bad peers are sent with. */
  get reporter(): string | undefined {
    return this.#reporter;
  }
  /** As far as this node knows. */
  get members(): number {
    return this.#members;
  }

  /** Others are there. */
  notAlone(): void {
    this.#members = Math.max(2, this.#members);
  }

  /** Joins when that has not been tried yet. */
  begin(): void {
    if (!this.#tried) this.#join();
  }

  /** The distributor has forgotten: joins again. */
  again(): void {
    if (performance.now() >= this.#nextMs) this.#join();
  }

  /** To be called now and then while something is wanted: joins again where neighbours are few or the capability ends. */
  check(neighbours: number): void {
    const now = performance.now();
    const stale = now - this.#joinedMs > REJOIN_MS && neighbours < MIN_NEIGHBOURS;
    const few = stale && (this.#members > neighbours + 1 || this.#capability === undefined);
    const ends = this.#capability !== undefined && this.#expiresMs - now < RENEW_MS;
    if ((few || ends) && now >= this.#nextMs) this.#join();
  }

  async close(): Promise<void> {
    this.#stopping.abort(new Error('The swarm is closing'));
    await this.#joining;
  }

  #join(): void {
    if (this.#stopping.signal.aborted || this.#joining !== undefined) return;
    this.#tried = true;
    this.#nextMs = performance.now() + REJOIN_MS;
    const { logger, layer, ended } = this.#options;
    this.#joining = this.#joinOnce()
      .catch((error: unknown) => {
        if (!this.#stopping.signal.aborted) logger.debug({ err: error, layer }, 'Cannot join');
      })
      .finally(() => {
        this.#joining = undefined;
        ended();
      });
  }

  async #joinOnce(): Promise<void> {
    const { link, layer, spanCount, holder, authorizationOf, logger, origins, saying, unsaid, joined } = this.#options;
    const { signal } = this.#stopping;
    await link.settled();
    if (!link.up) return;
    // A private image's origin is the one whose credentials work; the first is the latest.
    for (const { repository } of origins()) {
      const authorization = await authorizationOf(repository, signal);
      const { wants, fetching } = saying();
      const said = {
        layer,
        spanCount,
        have: Buffer.from(holder.get(layer)?.residency ?? []).toString('base64'),
        wants: wants.text,
        fetching: [...fetching],
        repository,
        ...(authorization === undefined ? {} : { authorization }),
      };
      let reply: JoinReply | undefined;
      try {
        reply = await link.join(said, signal);
      } finally {
        if (reply?.outcome !== 'joined') unsaid();
      }
      if (reply.outcome === 'refused') {
        logger.warn({ layer, repository, reason: reply.reason }, 'May not share a layer with other nodes');
        this.#nextMs = performance.now() + REFUSED_MS;
        continue;
      }
      this.#joinedMs = performance.now();
      this.#capability = reply.capability;
      this.#reporter = reply.reporter;
      this.#expiresMs = this.#joinedMs + reply.expiresInMs;
      this.#members = reply.members;
      joined(reply.neighbours);
      return;
    }
  }
}
