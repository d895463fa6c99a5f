import type { Digest } from '#shared/digest/digest.ts';
import type { NodeFigures, NodeRecord } from '#shared/distribution/messages.ts';
import type { Grant, LeaseTerms, LeaseView } from './lease-policy.ts';
import type { Report } from './report-policy.ts';

/** What has changed on a node for one layer. */
export interface LayerChange {
  readonly spanCount: number;
  readonly gained?: readonly number[];
  /** Of those gained: read from the registry. */
  readonly read?: readonly number[] | undefined;
  /** In place of all that was known: bitmap of what it holds. */
  readonly have?: Uint8Array;
  /** All that it wants and has not got. */
  readonly wants?: Uint8Array | undefined;
  readonly waiting?: { readonly load: number; readonly room: number } | undefined;
  /** Spans that it reads from the registry: leases are made or renewed. */
  readonly fetching?: readonly number[] | undefined;
  /** Leases given back. */
  readonly released?: readonly number[] | undefined;
}

export interface LocateWanted {
  /** Who asks. */
  readonly node: string;
  readonly spans: readonly number[];
  /** Nodes that are no use to it, whatever they have or fetch. */
  readonly without: readonly string[];
  /** Nodes that are too slow for it to take from what they have. What they fetch it waits for as all do. */
  readonly slow: readonly string[];
}

export interface Located {
  readonly span: number;
  /** Others that have it, some at random; else the one that fetches it; else nobody: it is leased to the asker. */
  readonly from: readonly string[];
  readonly leased: boolean;
}

export interface LayerSummary {
  readonly layer: Digest;
  readonly spanCount: number;
  readonly members: number;
  readonly held: number;
  readonly copies: number;
  /** Spans read from the registry, and how many different ones. */
  readonly reads: number;
  readonly readSpans: number;
  readonly leases: number;
  readonly unread: number;
}

/**
 * Who has which span of which layer, and who fetches what: all that the distributor's replicas know, shared by them. Two
 * implementations, one conformance suite: Redis for a cluster, memory within one process. Times are milliseconds since the
 * Unix epoch as the caller's clock tells them.
 */
export interface ChunkDirectory extends AsyncDisposable {
  /** Another one than before: what was known has been lost, and nodes must say it again. */
  epoch(): Promise<string>;
  /** A secret that all replicas share; the first one's `make` decides. One that `parse` cannot read is made anew. */
  secret<T>(make: () => string, parse: (text: string) => T): Promise<T>;
  readonly nodes: NodeTable;
  readonly layers: LayerTable;
  readonly reports: ReportTable;
}

export interface NodeTable {
  put(record: NodeRecord, nowMs: number, figures?: NodeFigures): Promise<void>;
  get(nodes: readonly string[]): Promise<readonly NodeRecord[]>;
  all(limit: number): Promise<readonly NodeRecord[]>;
  /** What those of the nodes have said last that have said it. */
  figures(nodes: readonly string[]): Promise<ReadonlyMap<string, NodeFigures>>;
  /** Nodes not put since `beforeMs`. */
  silent(beforeMs: number): Promise<readonly string[]>;
  /** Forgets the node and all that it held or fetched. */
  remove(node: string, nowMs: number): Promise<void>;
}

export interface ReportTable {
  /** Only the latest some thousand are kept. */
  add(report: Report, nowMs: number): Promise<void>;
  /** Those not older; each once. */
  since(ms: number): Promise<readonly Report[]>;
}

export interface LayerTable {
  /** The node is a member of the layer from now on. Returns how long it took for each leased span that it has read, milliseconds. */
  change(
    layer: Digest,
    node: string,
    change: LayerChange,
    nowMs: number,
    terms: LeaseTerms,
  ): Promise<readonly number[]>;
  leave(layer: Digest, node: string, nowMs: number): Promise<void>;
  /** Members at random, at most `count`, and how many there are. */
  members(layer: Digest, count: number): Promise<{ readonly total: number; readonly sample: readonly string[] }>;
  /**
   * What the lease policy looks at. Leases that have run out are over, and their spans unread again; so are the spans of leases that
   * are too old, which nobody but another node that is given them can end.
   */
  look(
    layer: Digest,
    nowMs: number,
    terms: LeaseTerms,
    limits: { readonly samples: number; readonly unread: number },
  ): Promise<LeaseView>;
  /**
   * Makes those leases that are still possible; each span is leased to one node at a time, and never again to the one that was too
   * slow. Returns which those are.
   */
  grant(layer: Digest, grants: readonly Grant[], nowMs: number, terms: LeaseTerms): Promise<readonly Grant[]>;
  locate(layer: Digest, wanted: LocateWanted, nowMs: number, terms: LeaseTerms): Promise<readonly Located[]>;
  summaries(limit: number): Promise<readonly LayerSummary[]>;
}
