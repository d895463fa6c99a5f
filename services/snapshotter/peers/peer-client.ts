import type { Dispatcher } from 'undici';
import type { Digest } from '#shared/digest/digest.ts';
import type { NodeRecord } from '#shared/distribution/messages.ts';
import { ResidencyReader, type ResidencyChange } from '#shared/distribution/residency-frames.ts';
import {
  DEMAND_HEADER,
  formatSpanRuns,
  FrameReader,
  MAX_RECEIVING,
  PACKED_SPANS,
  PLAIN_SPANS,
  RECEIVING_HEADER,
  type SpanFrame,
} from '#shared/distribution/span-frames.ts';
import { newHttpAgent } from '#shared/http/http-agent.ts';
import { releaseBytes } from '#shared/formats/release-bytes.ts';

export class PeerError extends Error {
  override readonly name = 'PeerError';
  readonly code: 'busy' | 'refused' | 'unreachable' | 'malformed';
  /** Of `busy`: when to ask again. */
  readonly retryAfterMs: number;
  constructor(code: PeerError['code'], message: string, options?: ErrorOptions & { readonly retryAfterMs?: number }) {
    super(message, options);
    this.code = code;
    this.retryAfterMs = options?.retryAfterMs ?? 0;
  }
}

/** Certificates that peers prove themselves with to each other, PEM. */
export interface PeerTls {
  readonly ca: string;
  readonly cert: string;
  readonly key: string;
}

const CONNECT_TIMEOUT_MS = 1_500;
/** A peer may wait so long for a span that is on its way to it. */
const HEADERS_TIMEOUT_MS = 12_000;
/** Silence within an answer; a residency stream beats more often. */
const BODY_TIMEOUT_MS = 8_000;
const CONNECTIONS_PER_PEER = 8;
const MAX_RETRY_AFTER_MS = 5_000;

/** Asks other nodes. Their addresses come from the distributor's records only. */
export class PeerClient {
  readonly #agent: Dispatcher;
  /** Answers with spans whose bytes are coming. */
  #receiving = 0;

  constructor(tls: PeerTls | undefined) {
    this.#agent = newHttpAgent({
      connections: CONNECTIONS_PER_PEER,
      pipelining: 1,
      headersTimeout: HEADERS_TIMEOUT_MS,
      bodyTimeout: BODY_TIMEOUT_MS,
      keepAliveTimeout: 10_000,
      connect: { timeout: CONNECT_TIMEOUT_MS, ...(tls === undefined ? {} : { ...tls, rejectUnauthorized: true }) },
    });
  }

  /** Hands on spans as they come; `expected` is the payload's length of each. @throws PeerError, or the signal's reason */
  async spans(
    peer: NodeRecord,
    ask: {
      readonly layer: Digest;
      readonly capability: string;
      readonly spans: readonly number[];
      /** Whether they may come packed. */
      readonly packed: boolean;
      /** Whether a reader waits for them. */
      readonly demand: boolean;
      readonly expected: (span: number) => number | undefined;
      /** The answer has begun: what was on its way to the peer is there. */
      readonly begun: () => void;
    },
    taken: (frame: SpanFrame) => void,
    signal: AbortSignal,
  ): Promise<void> {
    const asked = new Set(ask.spans);
    const reader = new FrameReader((span) => (asked.delete(span) ? ask.expected(span) : undefined));
    const path = `/v1/layers/${ask.layer}/spans/${formatSpanRuns(ask.spans)}`;
    let receives = false;
    const take = (chunk: Uint8Array) => {
      if (!receives) this.#receiving++;
      receives = true;
      for (const frame of parsed(peer, () => reader.push(chunk))) taken(frame);
    };
    const headers = {
      accept: ask.packed ? PACKED_SPANS : PLAIN_SPANS,
      [RECEIVING_HEADER]: String(Math.min(MAX_RECEIVING, this.#receiving)),
      ...(ask.demand ? { [DEMAND_HEADER]: '1' } : {}),
    };
    try {
      await this.#get(peer, path, ask.capability, take, signal, { headers, begun: ask.begun });
    } finally {
      if (receives) this.#receiving--;
    }
    parsed(peer, () => reader.end());
  }

  /** What the peer has of a layer, first all of it, then each change, until it ends. @throws PeerError, or the signal's reason */
  async residency(
    peer: NodeRecord,
    ask: { readonly layer: Digest; readonly capability: string; readonly spanCount: number },
    changed: (changes: readonly ResidencyChange[]) => void,
    signal: AbortSignal,
  ): Promise<void> {
    const reader = new ResidencyReader(ask.spanCount);
    const take = (chunk: Uint8Array) => changed(parsed(peer, () => reader.push(chunk)));
    await this.#get(peer, `/v1/layers/${ask.layer}/residency`, ask.capability, take, signal);
  }

  async close(): Promise<void> {
    await this.#agent.destroy();
  }

  /**
   * One answer, chunk by chunk, without a stream between: `take` keeps nothing of a chunk. What it throws ends the answer.
   * @throws PeerError, or the signal's reason
   */
  #get(
    peer: NodeRecord,
    path: string,
    capability: string,
    take: (chunk: Uint8Array) => void,
    signal: AbortSignal,
    { headers: more, begun: began }: { readonly headers?: Record<string, string>; readonly begun?: () => void } = {},
  ): Promise<void> {
    signal.throwIfAborted();
    const host = peer.host.includes(':') ? `[${peer.host}]` : peer.host;
    return new Promise<void>((resolve, reject) => {
      let abort: ((reason: Error) => void) | undefined;
      let refused: PeerError | undefined;
      let begun = false;
      const end = (error?: Error) => {
        signal.removeEventListener('abort', onAbort);
        if (error === undefined) resolve();
        else reject(error);
      };
      const fail = (error: Error) => {
        end(error);
        abort?.(error);
      };
      const onAbort = () => fail(signal.reason as Error);
      signal.addEventListener('abort', onAbort, { once: true });
      this.#agent.dispatch(
        {
          origin: `${peer.tls ? 'https' : 'http'}://${host}:${peer.port}`,
          path,
          method: 'GET',
          headers: { ...more, authorization: `Kindling ${capability}` },
        },
        {
          onRequestStart: (controller) => {
            abort = (reason) => controller.abort(reason);
            if (signal.aborted) controller.abort(signal.reason as Error);
          },
          onResponseStart: (_, status, headers) => {
            begun = true;
            if (status === 200) began?.();
            else refused = statusError(peer, status, headers['x-retry-after-ms']);
          },
          onResponseData: (_, chunk) => {
            try {
              if (refused !== undefined) throw refused;
              take(chunk);
            } catch (error) {
              fail(error as Error);
            }
            // The parser is done with it when this turn is over.
            queueMicrotask(() => releaseBytes(chunk));
          },
          onResponseEnd: () => end(refused),
          onResponseError: (_, cause) => {
            const what = begun
              ? `The answer of ${peer.node} broke off`
              : `Cannot reach ${peer.node} at ${host}:${peer.port}`;
            end(new PeerError('unreachable', what, { cause }));
          },
        },
      );
    });
  }
}

/** Runs what parses a peer's answer. */
function parsed<T>(peer: NodeRecord, parse: () => T): T {
  try {
    return parse();
  } catch (cause) {
    throw new PeerError('malformed', `Cannot use the answer of ${peer.node}`, { cause });
  }
}

function statusError(peer: NodeRecord, status: number, retryAfter: string | string[] | undefined): PeerError {
  if (status === 503 || status === 429) {
    const retryAfterMs = Math.min(MAX_RETRY_AFTER_MS, Math.max(1, Number(retryAfter) || 50));
    return new PeerError('busy', `${peer.node} is busy`, { retryAfterMs });
  }
  return new PeerError('refused', `${peer.node} answered ${status}`);
}
