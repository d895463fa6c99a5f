import type { Digest } from '#shared/digest/digest.ts';
import { DISTRIBUTION_LIMITS } from '#shared/distribution/messages.ts';
import { SpanSet } from '#shared/distribution/span-set.ts';
import type { DistributorLink } from './distributor-link.ts';
import type { SpanHolder } from './span-holder.ts';

/** What a node says of a layer beside what it holds. */
export interface Saying {
  readonly wants?: SpanSet;
  readonly waiting?: { readonly load: number; readonly room: number };
  readonly fetching?: readonly number[];
  readonly released?: readonly number[];
  /** Spans that have come from peers: others that come were read from the registry. */
  readonly fromPeers?: readonly number[];
}

interface Pending {
  readonly spanCount: number;
  readonly gained: Set<number>;
  readonly fetching: Set<number>;
  readonly released: Set<number>;
  readonly fromPeers: Set<number>;
  wants: SpanSet | undefined;
  waiting: { readonly load: number; readonly room: number } | undefined;
}

/** Updates are collected this long. */
const COLLECT_MS = 8;
/**
 * And spans that came from peers this long: neighbours see them at once, and the directory knows already that somebody has them. Else every
 * node of a burst would tell the distributor of every few spans.
 */
const COLLECT_COPIES_MS = 200;
/** And all of a layer that no other node is there for: one who comes follows us first, and then it is said at once. */
const COLLECT_ALONE_MS = 200;

/** Tells the distributor what changes on this node, many changes in one message, and everything when it has forgotten. */
export class UpdateOutbox implements Disposable {
  readonly #link: DistributorLink;
  readonly #pending = new Map<Digest, Pending>();
  readonly #stops: (() => void)[];
  readonly #holder: SpanHolder;
  /** On their way from peers. */
  readonly #copies = new Map<Digest, Set<number>>();
  /** Layers that no other node is known to want or have. */
  readonly #alone = new Set<Digest>();
  #dueMs = Infinity;
  #timer: NodeJS.Timeout | undefined;

  constructor(link: DistributorLink, holder: SpanHolder) {
    this.#link = link;
    this.#holder = holder;
    this.#stops = [
      holder.onResident((layer, span) => {
        const spanCount = holder.get(layer)?.spanCount;
        if (spanCount === undefined) return;
        const copy = this.#copies.get(layer)?.delete(span) === true;
        this.#of(layer, spanCount, copy ? COLLECT_COPIES_MS : COLLECT_MS)?.gained.add(span);
      }),
      holder.onRemoved((layer) => {
        this.#pending.delete(layer);
        this.forget(layer);
        link.send({ kind: 'left', node: link.record.node, layer });
      }),
      link.onEpoch(() => this.everything()),
    ];
  }

  say(layer: Digest, spanCount: number, saying: Saying): void {
    const pending = this.#of(layer, spanCount, COLLECT_MS);
    if (pending === undefined) return;
    const copies = this.#copies.get(layer);
    if (saying.wants !== undefined) pending.wants = saying.wants;
    if (saying.waiting !== undefined) pending.waiting = saying.waiting;
    for (const span of saying.fromPeers ?? []) pending.fromPeers.add(span);
    for (const span of saying.fetching ?? []) {
      pending.released.delete(span);
      pending.fetching.add(span);
      copies?.delete(span);
    }
    for (const span of saying.released ?? []) {
      pending.fetching.delete(span);
      pending.released.add(span);
    }
  }

  /** The span has come from a peer: when it is resident, the distributor need not hear of it soon. */
  copied(layer: Digest, span: number): void {
    const copies = this.#copies.get(layer);
    if (copies === undefined) this.#copies.set(layer, new Set([span]));
    else copies.add(span);
  }

  /** Whether this node is the only one that wants or has the layer, as far as it knows. */
  setAlone(layer: Digest, alone: boolean): void {
    if (alone) this.#alone.add(layer);
    else if (this.#alone.delete(layer) && this.#pending.has(layer)) this.#flush();
  }

  /** Nobody fetches the layer any more. */
  forget(layer: Digest): void {
    this.#copies.delete(layer);
    this.#alone.delete(layer);
  }

  [Symbol.dispose](): void {
    for (const stop of this.#stops) stop();
    this.#flush();
  }

  #of(layer: Digest, spanCount: number, withinMs: number): Pending | undefined {
    // Such a layer is not shared.
    if (spanCount > DISTRIBUTION_LIMITS.spans) return undefined;
    let pending = this.#pending.get(layer);
    if (pending === undefined) {
      pending = {
        spanCount,
        gained: new Set(),
        fetching: new Set(),
        released: new Set(),
        fromPeers: new Set(),
        wants: undefined,
        waiting: undefined,
      };
      this.#pending.set(layer, pending);
    }
    const collectMs = this.#alone.has(layer) ? COLLECT_ALONE_MS : withinMs;
    const dueMs = performance.now() + collectMs;
    if (dueMs < this.#dueMs) {
      clearTimeout(this.#timer);
      this.#dueMs = dueMs;
      this.#timer = setTimeout(() => this.#flush(), collectMs).unref();
    }
    return pending;
  }

  #flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#dueMs = Infinity;
    for (const [layer, pending] of this.#pending) {
      const { spanCount, wants, waiting, fromPeers } = pending;
      const gained = [...pending.gained];
      const listed = DISTRIBUTION_LIMITS.listed;
      do {
        const said = gained.splice(0, listed);
        this.#link.send({
          kind: 'changed',
          node: this.#link.record.node,
          layer,
          spanCount,
          gained: said,
          read: said.filter((span) => !fromPeers.has(span)),
          released: [...pending.released].slice(0, listed),
          fetching: [...pending.fetching].slice(0, listed),
          wants: wants?.text,
          waiting,
        });
      } while (gained.length > 0);
    }
    this.#pending.clear();
  }

  /** Says all that is held. */
  everything(): void {
    for (const { layer, spanCount, residency } of this.#holder.layers()) {
      if (spanCount === 0 || spanCount > DISTRIBUTION_LIMITS.spans || residency.every((byte) => byte === 0)) continue;
      const have = Buffer.from(residency).toString('base64');
      this.#link.send({ kind: 'holds', node: this.#link.record.node, layer, spanCount, have });
    }
  }
}
