import type { Digest } from '#shared/digest/digest.ts';
import type { SpanMap } from '#shared/layer/span-map.ts';

export type FetchPriority = 'demand' | 'prefetch' | 'background';

/** Where a layer's blob can be had: a repository on a registry that is known to have it. */
export interface LayerOrigin {
  /** `host[:port]/repository`, without tag or digest. */
  readonly repository: string;
  readonly layer: Digest;
  readonly sizeBytes: number;
  readonly mediaType: string;
}

export interface SpanRequest {
  readonly layer: Digest;
  readonly map: SpanMap;
  readonly origins: readonly LayerOrigin[];
  /** First and last span of a run, both included. */
  readonly first: number;
  readonly last: number;
  readonly priority: FetchPriority;
}

/**
 * `compressed`: the span's range of the blob, as a registry has it. `decoded`: what that decodes to, out of a stream that took
 * `blobBytes` of the blob for it. `payload`: its payload as SpanMap defines it, and `packed`: the same in one zstd
 * frame, as peers give them. None is verified yet.
 */
export type SpanBytes =
  | { readonly form: 'compressed' | 'payload' | 'packed'; readonly bytes: Uint8Array }
  | { readonly form: 'decoded'; readonly bytes: Uint8Array; readonly blobBytes: number };

/**
 * Takes a span as it comes. A source that reads on without being asked for more waits for the promise before it goes much further: it
 * resolves when the span is stored or refused, and when what nobody waits for may go on.
 */
export type DeliverSpan = (span: number, bytes: SpanBytes) => Promise<void> | undefined;

/**
 * A place to get spans from; peers come first, the registry last. A source hands on each span as soon as its bytes
 * are there. Spans it resolves without having delivered are asked from the next source; a rejection means the same and
 * is logged and counted.
 */
export interface SpanSource {
  readonly name: 'peer' | 'registry';
  fetch(request: SpanRequest, deliver: DeliverSpan, signal: AbortSignal): Promise<void>;
  /**
   * Blob bytes of one request, in place of the scheduler's own bound: for a source that chooses by itself in which order spans come,
   * and that bounds itself.
   */
  readonly runBytes?: Partial<Record<FetchPriority, number>>;
  /** Spans of the layer may be wanted soon: what must be done before the first can be had is done now. */
  expected?(target: Pick<SpanRequest, 'layer' | 'map' | 'origins'>): void;
  /** A reader waits for a span of a request that is under way. Without this such a request is cut where the span is far. */
  urgent?(request: SpanRequest, span: number): void;
  /** The bytes delivered for this span did not match their digest. */
  rejected(request: SpanRequest, span: number): void;
}
