import { Agent, type Dispatcher } from 'undici';
import type { Digest } from '#shared/digest/digest.ts';
import type { NodeRecord } from '#shared/distribution/messages.ts';
import { ResidencyReader, type ResidencyChange } from '#shared/distribution/residency-frames.ts';
import { formatSpanRuns, FrameReader, type SpanFrame } from '#shared/distribution/span-frames.ts';

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
  readonly #agent: Agent;

  constructor(tls: PeerTls | undefined) {
    this.#agent = new Agent({
      connections: CONNECTIONS_PER_PEER,
      pipelining: 1,
      headersTimeout: HEADERS_TIMEOUT_MS,
      bodyTimeout: BODY_TIMEOUT_MS,
      keepAliveTimeout: 10_000,
      connect: { timeout: CONNECT_TIMEOUT_MS, ...(tls === undefined ? {} : { ...tls, rejectUnauthorized: true }) },
    });
  }

  /** Spans as they come; `expected` is the payload's length of each. @throws PeerError, or the signal's reason */
  async *spans(
    peer: NodeRecord,
    ask: {
      readonly layer: Digest;
      readonly capability: string;
      readonly spans: readonly number[];
      readonly expected: (span: number) => number | undefined;
    },
    signal: AbortSignal,
  ): AsyncGenerator<SpanFrame> {
    const asked = new Set(ask.spans);
    const reader = new FrameReader((span) => (asked.delete(span) ? ask.expected(span) : undefined));
    const path = `/v1/layers/${ask.layer}/spans/${formatSpanRuns(ask.spans)}`;
    for await (const chunk of this.#body(peer, path, ask.capability, signal)) yield* framesOf(reader, chunk, peer);
    try {
      reader.end();
    } catch (cause) {
      throw new PeerError('malformed', `Cannot use the answer of ${peer.node}: it ended within a span`, { cause });
    }
  }

  /** What the peer has of a layer, first all of it, then each change, until it ends. @throws PeerError, or the signal's reason */
  async *residency(
    peer: NodeRecord,
    layer: Digest,
    capability: string,
    spanCount: number,
    signal: AbortSignal,
  ): AsyncGenerator<readonly ResidencyChange[]> {
    const reader = new ResidencyReader(spanCount);
    for await (const chunk of this.#body(peer, `/v1/layers/${layer}/residency`, capability, signal)) {
      let changes: readonly ResidencyChange[];
      try {
        changes = reader.push(chunk);
      } catch (cause) {
        throw new PeerError('malformed', `Cannot use what ${peer.node} says it has`, { cause });
      }
      yield changes;
    }
  }

  async close(): Promise<void> {
    await this.#agent.destroy();
  }

  async *#body(peer: NodeRecord, path: string, capability: string, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const host = peer.host.includes(':') ? `[${peer.host}]` : peer.host;
    let answer: Dispatcher.ResponseData;
    try {
      answer = await this.#agent.request({
        origin: `${peer.tls ? 'https' : 'http'}://${host}:${peer.port}`,
        path,
        method: 'GET',
        headers: { authorization: `Kindling ${capability}` },
        signal,
      });
    } catch (cause) {
      signal.throwIfAborted();
      throw new PeerError('unreachable', `Cannot reach ${peer.node} at ${host}:${peer.port}`, { cause });
    }
    const { body, statusCode, headers } = answer;
    // An error that comes when nobody reads any more must not end the process.
    body.on('error', () => {});
    try {
      if (statusCode !== 200) throw statusError(peer, statusCode, headers['x-retry-after-ms']);
      for await (const chunk of body) yield chunk as Uint8Array;
    } catch (cause) {
      signal.throwIfAborted();
      if (cause instanceof PeerError) throw cause;
      throw new PeerError('unreachable', `The answer of ${peer.node} broke off`, { cause });
    } finally {
      if (!body.readableEnded) body.destroy();
    }
  }
}

function framesOf(reader: FrameReader, chunk: Uint8Array, peer: NodeRecord): SpanFrame[] {
  try {
    return [...reader.push(chunk)];
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
