import type { Digest } from '#shared/digest/digest.ts';
import type { SpanFrame } from '#shared/distribution/span-frames.ts';
import type { SpanMap } from '#shared/layer/span-map.ts';
import type { SpanBytes } from '../layers/span-source.ts';
import type { Neighbour, Neighbourhood } from './neighbourhood.ts';
import { PeerError } from './peer-client.ts';
import type { Work } from './registry-reads.ts';
import type { Pick as SpanPick, SpanPicker } from './span-picker.ts';
import type { SwarmCalls } from './swarm-calls.ts';
import { SWARM_LIMITS } from './swarm-limits.ts';
import type { SwarmDeps } from './swarm.ts';

/** After a failure a neighbour is not asked for so long, a quarter more or less, so that not all come back at once. */
const REST_MS = 500;
/** A neighbour with so many failures in a row is lost. */
const FAILURES = 2;

export type TransferDeps = Pick<SwarmDeps, 'client' | 'metrics' | 'pace' | 'packing' | 'rates' | 'logger'>;

export interface PeerTransfersOptions {
  readonly layer: Digest;
  readonly map: SpanMap;
  readonly deps: TransferDeps;
  readonly calls: SwarmCalls;
  readonly picker: SpanPicker<string>;
  /** All that is under way; transfers are added while they last. */
  readonly works: Set<Work>;
  readonly neighbours: Neighbourhood;
  readonly capability: () => string | undefined;
  /** `packed`: bytes of their own, to be kept once they have proved right. */
  readonly delivered: (span: number, bytes: SpanBytes, node: string, packed: Uint8Array | undefined) => void;
  /** The neighbour has not got the span after all. */
  readonly absent: (span: number) => void;
  readonly ended: () => void;
}

interface Transfer {
  readonly pick: SpanPick<string>;
  readonly neighbour: Neighbour;
  readonly work: Work;
  readonly startMs: number;
  /** Until then the peer is busy, or waits for the spans itself. */
  begunMs: number | undefined;
  hedged: boolean;
  absent: boolean;
  /** On the wire, and of the contents. */
  bytes: number;
  contentBytes: number;
}

/** What this node takes of a layer from its neighbours. */
export class PeerTransfers {
  readonly #options: PeerTransfersOptions;
  readonly #transfers = new Set<Transfer>();
  /** Wanted again, since the neighbour that was asked lets us wait for them too long. */
  readonly #late = new Set<number>();

  constructor(options: PeerTransfersOptions) {
    this.#options = options;
  }

  /** Whether any of them is not so slow that what it brings is looked for elsewhere. */
  get someInTime(): boolean {
    for (const { hedged } of this.#transfers) if (!hedged) return true;
    return false;
  }

  /** Spans that somebody else might bring sooner than the neighbour that was asked. */
  late(limit: number): number[] {
    for (const span of this.#late) if (!this.#options.picker.isWanted(span)) this.#late.delete(span);
    return [...this.#late].slice(0, limit);
  }

  /** A reader waits for the span: whoever was asked for it, and has not begun to answer, is to be asked again as for a reader. */
  urgent(span: number): void {
    const { picker } = this.#options;
    for (const { pick, work, begunMs } of this.#transfers) {
      if (begunMs !== undefined || pick.demand || !work.missing.delete(span)) continue;
      picker.release(span);
      if (work.missing.size === 0) work.abort.abort(new Error('It is asked again, for a reader'));
    }
  }

  async take(pick: SpanPick<string>): Promise<void> {
    const { deps, picker, works, neighbours, calls, layer, map } = this.#options;
    const neighbour = neighbours.get(pick.neighbour);
    const capability = this.#options.capability();
    if (neighbour === undefined || capability === undefined) {
      picker.ended(pick, pick.spans);
      return;
    }
    const { record } = neighbour;
    const work: Work = { missing: new Set(pick.spans), abort: new AbortController() };
    const transfer: Transfer = {
      pick,
      neighbour,
      work,
      startMs: performance.now(),
      begunMs: undefined,
      hedged: false,
      absent: false,
      bytes: 0,
      contentBytes: 0,
    };
    works.add(work);
    this.#transfers.add(transfer);
    neighbour.owesMs ??= transfer.startMs;
    // After so long without a span it is raced by another.
    const timer = setTimeout(() => this.#hedge(transfer), deps.pace.lateMs);
    const packed = deps.packing.next();
    let restUntilMs = 0;
    let outcome = 'received';
    try {
      const ask = {
        layer,
        capability,
        spans: pick.spans,
        packed,
        demand: pick.demand,
        expected: (span: number) => (span < map.spanCount ? map.payloadLength(span) : undefined),
        begun: () => {
          transfer.begunMs = performance.now();
        },
      };
      const taken = (frame: SpanFrame): void => {
        neighbour.owesMs = performance.now();
        this.#take(transfer, frame);
        if (!transfer.hedged) timer.refresh();
      };
      await deps.client.spans(record, ask, taken, work.abort.signal);
      neighbour.failures = 0;
      if (transfer.bytes > 0) neighbour.absent = 0;
      if (transfer.absent) outcome = 'absent';
      else deps.pace.took(performance.now() - transfer.startMs);
    } catch (error) {
      outcome = this.#failed(neighbour, error, work.abort.signal.aborted);
      const afterMs = error instanceof PeerError && error.code === 'busy' ? error.retryAfterMs : REST_MS;
      if (outcome !== 'superseded') restUntilMs = performance.now() + afterMs * (0.75 + Math.random() / 2);
    } finally {
      clearTimeout(timer);
      if (transfer.bytes > 0) {
        const tookMs = performance.now() - (transfer.begunMs ?? transfer.startMs);
        deps.rates.took(record.node, transfer.bytes, tookMs);
        deps.packing.took(packed, transfer.contentBytes, tookMs);
      }
      works.delete(work);
      this.#transfers.delete(transfer);
      const owes = outcome === 'busy' || [...this.#transfers].some((other) => other.neighbour === neighbour);
      if (!owes) neighbour.owesMs = undefined;
      deps.metrics.requests.inc({ outcome });
      picker.ended(pick, transfer.hedged ? [] : [...work.missing].filter((span) => calls.has(span)), restUntilMs);
      for (const span of work.missing) if (!calls.has(span)) picker.unwant(span);
      this.#options.ended();
    }
  }

  #take(transfer: Transfer, frame: SpanFrame): void {
    const { deps, picker, neighbours, calls, map } = this.#options;
    const { node } = transfer.neighbour.record;
    const { span } = frame;
    if (frame.form === 'absent') {
      transfer.absent = true;
      picker.mark(node, span, false);
      neighbours.absent(node);
      this.#options.absent(span);
      return;
    }
    const { form, bytes } = frame;
    transfer.work.missing.delete(span);
    transfer.bytes += bytes.length;
    transfer.contentBytes += map.payloadLength(span);
    deps.metrics.received.inc(bytes.length);
    // A copy, since these go to another thread; kept for others once they are verified.
    const packed = form === 'packed' && calls.has(span) ? Uint8Array.from(bytes) : undefined;
    this.#options.delivered(span, { form, bytes }, node, packed);
  }

  /** Somebody else may bring what is missing. */
  #hedge(transfer: Transfer): void {
    const { deps, picker } = this.#options;
    const { pick, neighbour, begunMs, startMs } = transfer;
    const now = performance.now();
    transfer.hedged = true;
    deps.metrics.hedged.inc();
    // Before it begins to answer it may wait for the spans itself, which tells nothing of its link, as long as it is there.
    if (begunMs !== undefined || now - neighbour.heardMs > SWARM_LIMITS.silentMs) {
      deps.rates.atMost(neighbour.record.node, pick.bytes, now - (begunMs ?? startMs));
    }
    picker.late(pick, transfer.work.missing);
    for (const span of transfer.work.missing) this.#late.add(span);
    this.#options.ended();
  }

  #failed(neighbour: Neighbour, error: unknown, aborted: boolean): string {
    const { node } = neighbour.record;
    const { neighbours, deps } = this.#options;
    if (aborted) return 'superseded';
    if (error instanceof PeerError && error.code === 'busy') return 'busy';
    deps.logger.debug({ err: error, node }, 'A transfer failed');
    if (error instanceof PeerError && error.code === 'malformed') neighbours.block(node);
    else if (++neighbour.failures >= FAILURES) neighbours.drop(node);
    return error instanceof PeerError ? error.code : 'failed';
  }
}
