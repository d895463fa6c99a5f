import { randomUUID } from 'node:crypto';
import type { Digest } from '#shared/digest/digest.ts';
import type { NodeFigures, NodeRecord } from '#shared/distribution/messages.ts';
import { SpanSet } from '#shared/distribution/span-set.ts';
import type {
  ChunkDirectory,
  LayerChange,
  LayerSummary,
  LayerTable,
  Located,
  NodeTable,
  ReportTable,
} from './chunk-directory.ts';
import { LOCATED_HOLDERS, REPORTS_KEPT } from './directory-limits.ts';
import type { Grant, LeaseTerms, LeaseView, WaitingNode } from './lease-policy.ts';
import type { Report } from './report-policy.ts';

interface Lease {
  readonly node: string;
  /** When it was given, or its holder last had read another. */
  sinceMs: number;
  untilMs: number;
}

interface LayerState {
  spanCount: number;
  readonly members: Map<string, SpanSet>;
  readonly leases: Map<number, Lease>;
  readonly unread: Set<number>;
  readonly waiting: Map<string, WaitingNode>;
  readonly readSpans: Set<number>;
  reads: number;
}

/** The directory of a single process. */
export class MemoryDirectory implements ChunkDirectory {
  readonly #epoch = randomUUID();
  readonly #records = new Map<string, { readonly record: NodeRecord; seenMs: number }>();
  readonly #figures = new Map<string, NodeFigures>();
  /** By what they say, the latest last. */
  readonly #reports = new Map<string, { readonly report: Report; readonly atMs: number }>();
  readonly #layers = new Map<Digest, LayerState>();
  readonly #random: () => number;
  #secret: string | undefined;

  constructor(random: () => number = Math.random) {
    this.#random = random;
  }

  epoch(): Promise<string> {
    return Promise.resolve(this.#epoch);
  }

  secret<T>(make: () => string, parse: (text: string) => T): Promise<T> {
    return Promise.resolve(parse((this.#secret ??= make())));
  }

  readonly nodes: NodeTable = {
    put: async (record, nowMs, figures) => {
      this.#records.set(record.node, { record, seenMs: nowMs });
      if (figures !== undefined) this.#figures.set(record.node, figures);
    },
    get: async (nodes) => nodes.flatMap((node) => this.#records.get(node)?.record ?? []),
    all: async (limit) => [...this.#records.values()].slice(0, limit).map(({ record }) => record),
    figures: async (nodes) =>
      new Map(
        nodes.flatMap((node) => {
          const figures = this.#figures.get(node);
          return figures === undefined ? [] : [[node, figures] as const];
        }),
      ),
    silent: async (beforeMs) =>
      Array.from(this.#records).flatMap(([node, { seenMs }]) => (seenMs < beforeMs ? [node] : [])),
    remove: async (node, nowMs) => {
      this.#records.delete(node);
      this.#figures.delete(node);
      for (const layer of this.#layers.keys()) await this.layers.leave(layer, node, nowMs);
    },
  };

  readonly layers: LayerTable = {
    change: async (layer, node, change, nowMs, terms) => this.#change(layer, node, change, nowMs, terms),
    leave: async (layer, node) => {
      const state = this.#layers.get(layer);
      if (state === undefined) return;
      state.members.delete(node);
      state.waiting.delete(node);
      for (const [span, lease] of state.leases) if (lease.node === node) this.#free(state, span);
      if (state.members.size === 0) this.#layers.delete(layer);
    },
    members: async (layer, count) => {
      const members = [...(this.#layers.get(layer)?.members.keys() ?? [])];
      return { total: members.length, sample: this.#sample(members, count) };
    },
    look: async (layer, nowMs, { ageMs }, limits): Promise<LeaseView> => {
      const state = this.#layers.get(layer);
      if (state === undefined) return { members: 0, outstanding: 0, waiting: [], unread: [], late: [] };
      let outstanding = 0;
      const late = new Set<string>();
      for (const [span, { node, sinceMs, untilMs }] of state.leases) {
        // One that is too old stays: what its holder says of it from now on changes nothing.
        if (nowMs - sinceMs >= ageMs) {
          state.unread.add(span);
          late.add(node);
        } else if (untilMs <= nowMs) this.#free(state, span);
        else outstanding++;
      }
      return {
        members: state.members.size,
        outstanding,
        waiting: this.#sample([...state.waiting.values()], limits.samples),
        unread: [...state.unread].sort((a, b) => a - b).slice(0, limits.unread),
        late: [...late],
      };
    },
    grant: async (layer, grants, nowMs, { ttlMs }) => {
      const state = this.#layers.get(layer);
      if (state === undefined) return [];
      return grants.flatMap((grant): Grant[] => {
        const spans = grant.spans.filter(
          (span) => state.unread.has(span) && state.leases.get(span)?.node !== grant.node,
        );
        if (spans.length === 0 || !state.waiting.delete(grant.node)) return [];
        for (const span of spans) this.#lease(state, span, grant.node, nowMs, ttlMs);
        return [{ node: grant.node, spans }];
      });
    },
    locate: async (layer, { node, spans, without, slow }, nowMs, { ttlMs, ageMs }) => {
      const state = this.#layers.get(layer);
      if (state === undefined) return [];
      const useless = new Set([node, ...without]);
      return spans.map((span): Located => {
        const holders = [...state.members].flatMap(([other, has]) =>
          !useless.has(other) && !slow.includes(other) && has.has(span) ? [other] : [],
        );
        if (holders.length > 0) return { span, from: this.#sample(holders, LOCATED_HOLDERS), leased: false };
        const lease = state.leases.get(span);
        const holds = lease !== undefined && lease.untilMs > nowMs && nowMs - lease.sinceMs < ageMs;
        if (holds && !useless.has(lease.node)) {
          return { span, from: [lease.node], leased: false };
        }
        this.#lease(state, span, node, nowMs, ttlMs);
        return { span, from: [], leased: true };
      });
    },
    summaries: async (limit) =>
      Array.from(this.#layers, ([layer, state]): LayerSummary => {
        const held = new SpanSet(state.spanCount);
        let copies = 0;
        for (const has of state.members.values()) {
          for (const span of has.spans()) {
            held.add(span);
            copies++;
          }
        }
        return {
          layer,
          spanCount: state.spanCount,
          members: state.members.size,
          held: [...held.spans()].length,
          copies,
          reads: state.reads,
          readSpans: state.readSpans.size,
          leases: state.leases.size,
          unread: state.unread.size,
        };
      }).slice(0, limit),
  };

  readonly reports: ReportTable = {
    add: async (report, atMs) => {
      const name = `${report.suspect}|${report.reporter}`;
      this.#reports.delete(name);
      this.#reports.set(name, { report, atMs });
      for (const oldest of this.#reports.keys()) {
        if (this.#reports.size <= REPORTS_KEPT) break;
        this.#reports.delete(oldest);
      }
    },
    since: async (ms) => [...this.#reports.values()].flatMap(({ report, atMs }) => (atMs >= ms ? [report] : [])),
  };

  async [Symbol.asyncDispose](): Promise<void> {}

  #change(layer: Digest, node: string, change: LayerChange, nowMs: number, { ttlMs, ageMs }: LeaseTerms): number[] {
    let state = this.#layers.get(layer);
    if (state === undefined) {
      state = {
        spanCount: change.spanCount,
        members: new Map(),
        leases: new Map(),
        unread: new Set(),
        waiting: new Map(),
        readSpans: new Set(),
        reads: 0,
      };
      this.#layers.set(layer, state);
    }
    const took = (change.read ?? []).flatMap((span) => {
      const lease = state.leases.get(span);
      return lease?.node === node ? [nowMs - lease.sinceMs] : [];
    });
    const known = state.members.get(node);
    const has = change.have === undefined && known !== undefined ? known : new SpanSet(change.spanCount, change.have);
    state.members.set(node, has);
    for (const span of change.have === undefined ? [] : has.spans()) this.#read(state, span);
    for (const span of change.gained ?? []) {
      has.add(span);
      this.#read(state, span);
    }
    for (const span of change.read ?? []) {
      state.reads++;
      state.readSpans.add(span);
    }
    // What it reads one after the other is not late while it goes on.
    for (const lease of took.length > 0 ? state.leases.values() : []) {
      if (lease.node === node && nowMs - lease.sinceMs < ageMs) lease.sinceMs = nowMs;
    }
    for (const span of change.released ?? []) if (state.leases.get(span)?.node === node) this.#free(state, span);
    for (const span of change.fetching ?? []) {
      const lease = state.leases.get(span);
      if (lease === undefined) this.#lease(state, span, node, nowMs, ttlMs);
      else if (lease.node === node && nowMs - lease.sinceMs < ageMs) lease.untilMs = nowMs + ttlMs;
    }
    if (change.wants !== undefined) {
      for (const span of new SpanSet(state.spanCount, change.wants).spans()) this.#want(state, span);
    }
    if (change.waiting !== undefined) state.waiting.set(node, { node, ...change.waiting });
    return took;
  }

  #want(state: LayerState, span: number): void {
    if (state.leases.has(span)) return;
    for (const has of state.members.values()) if (has.has(span)) return;
    state.unread.add(span);
  }

  #read(state: LayerState, span: number): void {
    state.unread.delete(span);
    state.leases.delete(span);
  }

  #lease(state: LayerState, span: number, node: string, nowMs: number, leaseMs: number): void {
    state.unread.delete(span);
    state.leases.set(span, { node, sinceMs: nowMs, untilMs: nowMs + leaseMs });
  }

  #free(state: LayerState, span: number): void {
    state.leases.delete(span);
    this.#want(state, span);
  }

  #sample<T>(items: readonly T[], count: number): T[] {
    if (items.length <= count) return [...items];
    const left = [...items];
    return Array.from({ length: count }, () => left.splice(Math.floor(this.#random() * left.length), 1)).flat();
  }
}
