import type { Claims } from '#shared/bus/bus.ts';
import type { Digest } from '#shared/digest/digest.ts';
import { DISTRIBUTION_LIMITS, type NodeRecord } from '#shared/distribution/messages.ts';
import { SpanSet } from '#shared/distribution/span-set.ts';
import type { SpanMap } from '#shared/layer/span-map.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import type { DeliverSpan, LayerOrigin, SpanBytes, SpanRequest, SpanSource } from '../layers/span-source.ts';
import type { BadPeers } from './bad-peers.ts';
import type { DistributorLink } from './distributor-link.ts';
import { Membership } from './membership.ts';
import { Neighbourhood } from './neighbourhood.ts';
import type { PackedSpans } from './packed-spans.ts';
import type { PackingChoice } from './packing-choice.ts';
import type { PeerClient } from './peer-client.ts';
import type { PeerMetrics } from './peer-metrics.ts';
import { PeerTransfers } from './peer-transfers.ts';
import type { SpanHolder } from './span-holder.ts';
import { adjacentRuns } from './adjacent-runs.ts';
import { askMs, PATIENCE_LIMITS, ReaderPatience } from './reader-patience.ts';
import { RegistryReads, type Work } from './registry-reads.ts';
import type { SourceRates } from './source-rates.ts';
import { SpanPicker } from './span-picker.ts';
import { SwarmCalls } from './swarm-calls.ts';
import { SWARM_LIMITS } from './swarm-limits.ts';
import type { TransferPace } from './transfer-pace.ts';
import type { UpdateOutbox } from './update-outbox.ts';

export interface SwarmDeps {
  readonly link: DistributorLink;
  readonly outbox: UpdateOutbox;
  readonly client: PeerClient;
  readonly registry: SpanSource;
  readonly authorizationOf: (repository: string, signal: AbortSignal) => Promise<string | undefined>;
  readonly holder: SpanHolder;
  readonly claims: Claims;
  readonly packed: PackedSpans;
  readonly packing: PackingChoice;
  readonly badPeers: BadPeers;
  readonly pace: TransferPace;
  readonly rates: SourceRates;
  readonly metrics: PeerMetrics;
  readonly logger: Logger;
  /** Nothing was wanted for a while. */
  readonly idle: (swarm: Swarm) => void;
}

/** Bytes that are not verified yet. */
interface Sent {
  readonly node: string;
  readonly atMs: number;
  readonly packed: Uint8Array | undefined;
}

const REGISTRY = '';

/**
 * One layer that this node fetches together with others. Follows what its neighbours have, picks what to take from whom, reads
 * from the registry what it holds a lease for; and by itself when there is nobody else or no distributor.
 */
export class Swarm {
  readonly layer: Digest;
  readonly #map: SpanMap;
  readonly #deps: SwarmDeps;
  readonly #picker: SpanPicker<string>;
  readonly #calls = new SwarmCalls();
  readonly #patience = new ReaderPatience();
  readonly #neighbours: Neighbourhood;
  readonly #membership: Membership;
  readonly #reads: RegistryReads;
  readonly #transfers: PeerTransfers;
  readonly #works = new Set<Work>();
  /** Who sent a span that is not verified yet, and when. */
  readonly #senders = new Map<number, Sent>();
  readonly #located = new Map<number, number>();
  readonly #stopping = new AbortController();
  readonly #running = new Set<Promise<void>>();
  readonly #stops: (() => void)[];
  readonly #timer: NodeJS.Timeout;
  #origins: readonly LayerOrigin[] = [];
  #askedMs = -Infinity;
  #waiting = false;
  #aloneRuns = 0;
  #aloneRunBytes: number = SWARM_LIMITS.firstRunBytes;
  #progressMs = performance.now();
  #tickedMs = performance.now();
  #wanted = false;
  #wantedMs = performance.now();
  #pumping = false;
  #wantsSaid = true;

  constructor(layer: Digest, map: SpanMap, deps: SwarmDeps) {
    this.layer = layer;
    this.#map = map;
    this.#deps = deps;
    this.#picker = new SpanPicker<string>({
      spanCount: map.spanCount,
      bytesOf: (span) => map.payloadLength(span),
      random: Math.random,
      speeds: deps.rates,
    });
    this.#membership = new Membership({
      ...deps,
      layer,
      spanCount: map.spanCount,
      origins: () => this.#origins,
      // What is wanted from now on is not in it.
      saying: () => {
        this.#wantsSaid = true;
        return { wants: this.#wants(), fetching: this.#fetching() };
      },
      unsaid: () => {
        this.#wantsSaid = false;
      },
      joined: (neighbours) => {
        this.#waiting = false;
        for (const record of neighbours) this.#neighbours.add(record);
        deps.outbox.setAlone(layer, this.#membership.members <= 1 && neighbours.length === 0);
      },
      ended: () => this.#pumpSoon(),
    });
    this.#neighbours = new Neighbourhood({
      self: deps.link.record.node,
      layer,
      spanCount: map.spanCount,
      picker: this.#picker,
      client: deps.client,
      badPeers: deps.badPeers,
      rates: deps.rates,
      link: deps.link,
      metrics: deps.metrics,
      membership: this.#membership,
      changed: () => this.#pumpSoon(),
      logger: deps.logger,
    });
    const ended = () => this.#pumpSoon();
    const work = { layer, map, deps, calls: this.#calls, picker: this.#picker, works: this.#works, ended };
    this.#reads = new RegistryReads({
      ...work,
      progressMs: () => this.#progressMs,
      delivered: (span, bytes) => this.#delivered(span, bytes, REGISTRY),
      giveUp: (span) => this.#giveUp(span),
      stopping: this.#stopping.signal,
    });
    this.#transfers = new PeerTransfers({
      ...work,
      neighbours: this.#neighbours,
      capability: () => this.#membership.capability,
      delivered: (span, bytes, node, packed) => void this.#delivered(span, bytes, node, packed),
      // Whoever said where it is is asked again soon.
      absent: (span) => this.#located.set(span, performance.now() - SWARM_LIMITS.stallMs + SWARM_LIMITS.absentMs),
    });
    this.#stops = [
      deps.link.onLease(layer, (spans) => this.#leased(spans)),
      deps.link.onEpoch(() => {
        if (this.#calls.size > 0) this.#membership.again();
      }),
      deps.holder.onResident((other, span) => {
        if (other !== layer) return;
        const sender = this.#senders.get(span)?.node ?? REGISTRY;
        if (sender !== REGISTRY) deps.outbox.say(layer, map.spanCount, { fromPeers: [span] });
        const sent = this.#senders.get(span);
        if (sent === undefined) return;
        this.#senders.delete(span);
        if (sent.packed !== undefined) deps.packed.keep(layer, span, sent.packed);
        this.#pumpSoon();
      }),
    ];
    this.#timer = setInterval(() => this.#tick(), SWARM_LIMITS.tickMs);
    this.#timer.unref();
  }

  /** As SpanSource.expected. */
  expected(origins: readonly LayerOrigin[]): void {
    this.#wantedMs = performance.now();
    this.#origins = origins;
    this.#membership.begin();
  }

  /** As SpanSource.fetch. */
  async fetch(request: SpanRequest, deliver: DeliverSpan, signal: AbortSignal): Promise<void> {
    this.#wanted = true;
    this.#wantedMs = performance.now();
    if (this.#calls.size === 0) this.#progressMs = this.#wantedMs;
    this.#origins = request.origins;
    const done = this.#calls.add(request, deliver, this.#wantedMs, signal, (left) => {
      for (const span of left) this.#unwant(span);
      this.#endUseless();
    });
    const demand = request.priority === 'demand';
    for (let span = request.first; span <= request.last; span++) this.#picker.want(span, demand);
    this.#wantsSaid = false;
    this.#membership.begin();
    this.#pumpSoon();
    await done;
  }

  /** A reader waits for the span now. */
  urgent(span: number): void {
    if (!this.#calls.has(span)) return;
    this.#transfers.urgent(span);
    this.#picker.want(span, true);
    this.#pumpSoon();
  }

  /** The bytes that were delivered for the span are wrong. */
  rejected(span: number): void {
    const sender = this.#senders.get(span)?.node;
    this.#senders.delete(span);
    if (sender !== undefined && sender !== REGISTRY) this.#neighbours.block(sender);
  }

  /** Whether the span is on its way here: a peer that asks for it may wait. */
  arriving(span: number): boolean {
    return this.#calls.has(span) || this.#senders.has(span);
  }

  /** Whether the span is being read from the registry here, or was and is not verified yet: then whoever waits for it waits for this node. */
  reads(span: number): boolean {
    return this.#reads.has(span) || this.#senders.get(span)?.node === REGISTRY;
  }

  /** A node follows what we have: we follow it as well. */
  followed(record: NodeRecord): void {
    this.#membership.notAlone();
    this.#deps.outbox.setAlone(this.layer, false);
    if (this.#membership.capability !== undefined) this.#neighbours.add(record);
  }

  async close(): Promise<void> {
    this.#stopping.abort(new Error('The swarm is closing'));
    this.#deps.outbox.forget(this.layer);
    clearInterval(this.#timer);
    for (const stop of this.#stops) stop();
    for (const work of this.#works) work.abort.abort(this.#stopping.signal.reason);
    for (const span of Array.from(this.#calls.spans())) this.#calls.giveUp(span);
    await this.#membership.close();
    await this.#neighbours.close();
    await Promise.allSettled(this.#running);
  }

  // Working

  #pumpSoon(): void {
    if (this.#pumping || this.#stopping.signal.aborted) return;
    this.#pumping = true;
    setImmediate(() => {
      this.#pumping = false;
      if (!this.#stopping.signal.aborted) this.#pump();
    });
  }

  #pump(): void {
    if (this.#calls.size === 0 || this.#senders.size >= SWARM_LIMITS.unverified) return;
    const now = performance.now();
    const { capability } = this.#membership;
    for (let pick = capability && this.#picker.pick(now); pick; pick = this.#picker.pick(now)) {
      this.#track(this.#transfers.take(pick));
    }
    if (this.#decidesAlone()) this.#readAlone();
    else if (!this.#membership.isJoining) {
      this.#sayWants(now);
      this.#locate(now, this.#picker.nowhere(DISTRIBUTION_LIMITS.located, true));
      // Nothing comes in good time: what only slow neighbours have is looked for elsewhere.
      if (this.#reads.size === 0 && !this.#transfers.someInTime)
        this.#locate(now, this.#picker.slowOnly(SWARM_LIMITS.located));
      this.#locate(now, this.#transfers.late(SWARM_LIMITS.located));
    }
    const restMs = this.#picker.nextRestMs(now);
    if (restMs !== undefined) setTimeout(() => this.#pumpSoon(), Math.ceil(restMs - now)).unref();
  }

  /** Nobody to share with, or nobody who says who reads what. */
  #decidesAlone(): boolean {
    if (this.#membership.isJoining) return false;
    if (!this.#deps.link.up || this.#membership.capability === undefined) return true;
    return this.#membership.members <= 1 && this.#neighbours.size === 0;
  }

  /** Reads what no neighbour has, in order where we are alone, else in random places, so that nodes read different spans. */
  #readAlone(): void {
    const alone = this.#neighbours.size === 0;
    // What a reader waits for, and what was taken along with it, in one request as it was put together.
    const demandBytes = alone ? SWARM_LIMITS.aloneRunBytes : SWARM_LIMITS.firstRunBytes;
    for (const span of this.#picker.nowhere(64, true))
      if (this.#picker.isWanted(span)) this.#readFrom(span, demandBytes);
    while (this.#aloneRuns < SWARM_LIMITS.aloneRuns) {
      const open = this.#picker.nowhere(alone ? 1 : 4096, false);
      const span = open[Math.floor(Math.random() * open.length)];
      if (span === undefined || this.#reads.isElsewhere(span)) return;
      this.#aloneRuns++;
      this.#track(
        this.#readFrom(span, alone ? this.#aloneRunBytes : SWARM_LIMITS.firstRunBytes).finally(() => {
          this.#aloneRuns--;
          this.#aloneRunBytes = Math.min(SWARM_LIMITS.aloneRunBytes, this.#aloneRunBytes * 2);
          this.#pumpSoon();
        }),
      );
    }
  }

  /** Reads the span and the wanted ones behind it, so many bytes of the blob at most. */
  #readFrom(first: number, limit: number): Promise<void> {
    const spans = [first];
    const start = this.#map.blobStart(first);
    for (let span = first + 1; this.#picker.isWanted(span) && this.#picker.copies(span) === 0; span++) {
      if (this.#map.blobEnd(span) - start > limit) break;
      spans.push(span);
    }
    this.#deps.outbox.say(this.layer, this.#map.spanCount, { fetching: spans });
    return this.#reads.read(spans, 'alone');
  }

  #sayWants(now: number): void {
    const { outbox } = this.#deps;
    const wants = this.#wantsSaid ? {} : { wants: this.#wants() };
    const asks = !this.#waiting && this.#picker.wantedCount > 0;
    if (this.#wantsSaid && !asks) return;
    this.#wantsSaid = true;
    if (asks) {
      this.#waiting = true;
      this.#askedMs = now;
    }
    const { blobSize, spanCount } = this.#map;
    const load = Math.min(1000, this.#works.size);
    const room = Math.max(1, Math.min(1000, Math.floor((SWARM_LIMITS.leaseBytes * spanCount) / Math.max(1, blobSize))));
    outbox.say(this.layer, spanCount, { ...wants, ...(asks ? { waiting: { load, room } } : {}) });
  }

  #leased(spans: readonly number[]): void {
    // It would be given again at once what it cannot read now.
    if (!spans.every((span) => this.#reads.isElsewhere(span))) this.#waiting = false;
    const { holder, outbox } = this.#deps;
    // Also what is in flight from a peer: a lease means that nobody has it, so that peer waits for it as well, maybe for us.
    const mine = spans.filter((span) => this.#calls.has(span) && !this.#reads.has(span));
    const back = spans.filter(
      (span) => !mine.includes(span) && !this.#reads.has(span) && !holder.has(this.layer, span),
    );
    if (back.length > 0) outbox.say(this.layer, this.#map.spanCount, { released: back });
    for (const run of adjacentRuns(mine, this.#map, SWARM_LIMITS.aloneRunBytes))
      this.#track(this.#reads.read(run, 'lease'));
    this.#pumpSoon();
  }

  #delivered(span: number, bytes: SpanBytes, node: string, packed?: Uint8Array): Promise<void> | undefined {
    if (!this.#calls.has(span)) return undefined;
    const now = performance.now();
    this.#senders.set(span, { node, atMs: now, packed });
    if (node !== REGISTRY) this.#deps.outbox.copied(this.layer, span);
    this.#progressMs = now;
    this.#unwant(span);
    const stored = this.#calls.deliver(span, bytes);
    this.#endUseless();
    return stored;
  }

  #giveUp(span: number): void {
    this.#unwant(span);
    this.#calls.giveUp(span);
  }

  #unwant(span: number): void {
    this.#picker.unwant(span);
    this.#patience.forget(span);
  }

  /** Ends what brings nothing that is still wanted: the loser of a race, and what an abort has left. */
  #endUseless(): void {
    for (const work of this.#works) {
      let useful = false;
      for (const span of work.missing) useful ||= this.#calls.has(span);
      if (!useful && work.missing.size > 0) work.abort.abort(new Error('Nobody waits for these spans any more'));
    }
  }

  /** Asks who else has what no neighbour has that is fast enough; what nobody has is leased to us. */
  #locate(now: number, wanted: readonly number[]): void {
    const spans = wanted.filter((span) => now - (this.#located.get(span) ?? -Infinity) > SWARM_LIMITS.stallMs);
    this.#ask(now, spans, []);
  }

  /** Asks so, without those that were to bring it and are late. */
  #ask(now: number, spans: readonly number[], late: readonly string[]): void {
    // Before it has joined nobody would give it anything.
    if (spans.length === 0 || this.#membership.capability === undefined) return;
    for (const span of spans) this.#located.set(span, now);
    const without = [...new Set([...late, ...this.#neighbours.lost()])].slice(0, DISTRIBUTION_LIMITS.avoided);
    const slow = this.#neighbours.slow();
    this.#track(
      this.#deps.link.locate({ layer: this.layer, spans: [...spans], without, slow }, this.#stopping.signal).then(
        ({ leased, elsewhere }) => {
          this.#leased(leased);
          for (const { span, from } of elsewhere) {
            // It may still be fetching it: then it lets us wait. One that cannot be used is left out of the next question.
            for (const record of from) if (this.#neighbours.add(record)) this.#picker.mark(record.node, span, true);
          }
          this.#pumpSoon();
        },
        () => this.#pumpSoon(),
      ),
    );
  }

  #tick(): void {
    const now = performance.now();
    // It is not the others who stood still: what they have sent meanwhile has not been looked at yet.
    if (now - this.#tickedMs > SWARM_LIMITS.stoodStillMs) this.#progressMs = now;
    this.#tickedMs = now;
    for (const [span, { atMs }] of this.#senders) if (now - atMs > 10_000) this.#senders.delete(span);
    if (this.#calls.size === 0) {
      const idleMs = this.#wanted ? SWARM_LIMITS.idleMs : SWARM_LIMITS.expectedMs;
      if (this.#works.size === 0 && now - this.#wantedMs > idleMs) this.#leave();
      return;
    }
    this.#membership.check(this.#neighbours.size);
    if (now - this.#askedMs > SWARM_LIMITS.stallMs) this.#waiting = false;
    const fetching = this.#fetching();
    if (fetching.length > 0) this.#deps.outbox.say(this.layer, this.#map.spanCount, { fetching });
    const stalled = now - this.#progressMs > SWARM_LIMITS.stallMs;
    if (stalled && !this.#decidesAlone()) this.#locate(now, this.#picker.nowhere(SWARM_LIMITS.located, false));
    this.#helpReaders(now);
    this.#pumpSoon();
  }

  /** Whatever else is wrong, a reader gets its bytes; and what is fetched ahead comes some day. */
  #helpReaders(now: number): void {
    const { pace, rates, link } = this.#deps;
    const { lateMs } = pace;
    const { registryMs } = rates;
    const usual = link.up && this.#membership.capability !== undefined ? { lateMs, registryMs } : undefined;
    const asked = new Map<string, { readonly late: readonly string[]; readonly spans: number[] }>();
    for (const span of this.#calls.spans()) {
      if (this.#reads.has(span)) continue;
      const sinceMs = this.#calls.sinceMs(span) ?? now;
      if (!this.#picker.isDemanded(span)) {
        const waitedMs = now - Math.max(sinceMs, this.#progressMs);
        if (waitedMs > PATIENCE_LIMITS.aheadMs) this.#readImpatiently(span);
        continue;
      }
      const next = this.#patience.next(span, now - sinceMs, now, usual);
      if (next === 'read') this.#readImpatiently(span);
      if (next !== 'ask' || usual === undefined) continue;
      const holders = this.#picker.holders(span);
      const late = this.#neighbours.late(holders, this.#map.payloadLength(span), askMs(usual), now);
      const isKnown = late.length > 0 || holders.length === 0;
      if (isKnown || now - sinceMs >= PATIENCE_LIMITS.mostAskMs) this.#patience.asked(span, now);
      if (!isKnown) continue;
      const group = asked.get(late.join()) ?? { late, spans: [] };
      if (group.spans.length < DISTRIBUTION_LIMITS.located) group.spans.push(span);
      asked.set(late.join(), group);
    }
    for (const { late, spans } of asked.values()) this.#ask(now, spans, late);
  }

  #readImpatiently(span: number): void {
    if (this.#reads.size < SWARM_LIMITS.impatient) this.#track(this.#reads.read([span], 'impatient'));
  }

  #leave(): void {
    const { link, holder, idle } = this.#deps;
    const holds = holder.get(this.layer)?.residency.some((byte) => byte !== 0) === true;
    // Who has nothing and wants nothing is no neighbour to anybody.
    if (!holds) link.send({ kind: 'left', node: link.record.node, layer: this.layer });
    idle(this);
  }

  /** What this node reads from the registry, until others can have it from here. As many as can be told in one message. */
  #fetching(): number[] {
    const unverified = Array.from(this.#senders).flatMap(([span, { node }]) => (node === REGISTRY ? [span] : []));
    return [...this.#reads.spans(), ...unverified].slice(0, DISTRIBUTION_LIMITS.listed);
  }

  #wants(): SpanSet {
    return SpanSet.of(this.#map.spanCount, this.#calls.spans());
  }

  #track(work: Promise<void>): void {
    this.#running.add(work);
    void work.finally(() => this.#running.delete(work));
  }
}
