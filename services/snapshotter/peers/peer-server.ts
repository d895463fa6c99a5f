import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import type { KeyObject } from 'node:crypto';
import { isDigest, type Digest } from '#shared/digest/digest.ts';
import type { Capability } from '#shared/distribution/capability.ts';
import { DISTRIBUTION_LIMITS, type NodeRecord } from '#shared/distribution/messages.ts';
import {
  DEMAND_HEADER,
  frameHeader,
  PACKED_SPANS,
  parseReceiving,
  parseSpanRuns,
  PLAIN_SPANS,
  RECEIVING_HEADER,
} from '#shared/distribution/span-frames.ts';
import { createServer } from '#shared/http/node-http.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import { releaseBytes } from '#shared/formats/release-bytes.ts';
import { CapabilityChecks } from './capability-checks.ts';
import { ResidencyFeed } from './residency-feed.ts';
import type { PackedSpans } from './packed-spans.ts';
import type { PeerMetrics } from './peer-metrics.ts';
import type { PeerTls } from './peer-client.ts';
import type { SpanHolder } from './span-holder.ts';
import { TransferPace, UPLOAD_PACE } from './transfer-pace.ts';
import { UploadRate } from './upload-rate.ts';
import { UploadSlots, type UploadRequest } from './upload-slots.ts';

export interface PeerServerOptions {
  readonly host: string;
  readonly port: number;
  readonly holder: SpanHolder;
  readonly packed: PackedSpans;
  /** Whether spans are packed for those who ask for that. */
  readonly packs: boolean;
  /** Whose capabilities count; undefined = nobody's yet. */
  readonly publicKey: () => KeyObject | undefined;
  /** Whether the span is on its way here, so that whoever asks for it may wait. */
  readonly arriving: (layer: Digest, span: number) => boolean;
  /** A reader of another node waits for a span that is on its way here, until the signal. */
  readonly demanded: (layer: Digest, span: number, until: AbortSignal) => void;
  /** Somebody follows what we have of the layer: it is a neighbour of ours as well. */
  readonly followed: (layer: Digest, by: NodeRecord) => void;
  readonly bytesPerS: number;
  readonly tls: PeerTls | undefined;
  readonly metrics: PeerMetrics;
  readonly logger: Logger;
}

const PATH = /^\/v1\/layers\/(sha256:[0-9a-f]{64})\/(?:spans\/([\d,-]+)|(residency))$/;
/** Spans of one request. */
const SPANS_PER_REQUEST = 256;
/** How long a request waits for a span that is on its way here. */
const ARRIVAL_MS = 10_000;
/** Requests that wait for spans to arrive. */
const WAITING_REQUESTS = 256;
const MAX_CONNECTIONS = 4096;
/** A receiver that takes nothing for so long loses the connection and we get the slot back. */
const STALL_MS = 15_000;

/**
 * Gives verified spans to nodes that show a capability for the layer. Bounded: slots, a queue, a rate; a receiver that is slow
 * holds up nobody but itself.
 */
export class PeerServer implements AsyncDisposable {
  readonly port: number;
  readonly #options: PeerServerOptions;
  readonly #server: Server;
  readonly #slots = new UploadSlots();
  readonly #pace = new TransferPace(UPLOAD_PACE);
  readonly #rate: UploadRate;
  readonly #feed: ResidencyFeed;
  readonly #checks: CapabilityChecks;
  readonly #stopping = new AbortController();
  #waiting = 0;

  private constructor(options: PeerServerOptions, server: Server, port: number) {
    this.#options = options;
    this.#server = server;
    this.port = port;
    this.#rate = new UploadRate(options.bytesPerS);
    this.#feed = new ResidencyFeed(options.holder);
    this.#checks = new CapabilityChecks(options.publicKey);
    server.on('request', (request, response) => void this.#answer(request, response));
  }

  static async listen(options: PeerServerOptions): Promise<PeerServer> {
    const { tls } = options;
    const server =
      tls === undefined
        ? createServer()
        : (await import('node:https')).createServer({
            ...tls,
            requestCert: true,
            rejectUnauthorized: true,
            minVersion: 'TLSv1.3',
          });
    server.maxConnections = MAX_CONNECTIONS;
    server.keepAliveTimeout = 30_000;
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(options.port, options.host, () => {
        server.off('error', reject);
        resolve();
      });
    });
    server.on('error', (error) => options.logger.warn({ err: error }, 'The server for peers failed'));
    const address = server.address();
    return new PeerServer(options, server, typeof address === 'object' && address !== null ? address.port : 0);
  }

  get uploads(): number {
    return this.#slots.active;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort(new Error('The agent is shutting down'));
    this.#feed[Symbol.dispose]();
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#server.closeAllConnections();
    await closed;
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const gone = new AbortController();
    response.on('close', () => gone.abort(new Error('The peer has gone')));
    response.on('error', () => {});
    try {
      const [, layer, runs] = PATH.exec(request.url ?? '') ?? [];
      if (!isDigest(layer) || request.method !== 'GET') return this.#end(response, 404, 'not-found');
      const capability = this.#checks.check(request.headers.authorization, layer, Date.now());
      if (capability === undefined) return this.#end(response, 401, 'refused');
      const signal = AbortSignal.any([gone.signal, this.#stopping.signal]);
      if (runs === undefined) return this.#follow(response, layer, capability);
      const spans = parseSpanRuns(runs, SPANS_PER_REQUEST);
      if (spans === undefined) return this.#end(response, 400, 'malformed');
      const packs = this.#options.packs && request.headers.accept === PACKED_SPANS;
      const demand = request.headers[DEMAND_HEADER] !== undefined;
      const receiving = parseReceiving(request.headers[RECEIVING_HEADER]);
      await this.#spans(response, { layer, spans, packs, demand, receiving }, signal);
    } catch (error) {
      if (!gone.signal.aborted && !this.#stopping.signal.aborted) {
        this.#options.logger.debug({ err: error }, 'Cannot serve a peer');
      }
      this.#options.metrics.served.inc({ outcome: 'broken' });
      response.destroy();
    }
  }

  #follow(response: ServerResponse, layer: Digest, { record }: Capability): void {
    const opened = this.#feed.open(layer, response);
    if (!opened) return this.#end(response, 404, 'not-here');
    this.#options.followed(layer, record);
  }

  async #spans(
    response: ServerResponse,
    ask: { readonly layer: Digest; readonly spans: readonly number[]; readonly packs: boolean } & UploadRequest,
    signal: AbortSignal,
  ): Promise<void> {
    const { holder, metrics } = this.#options;
    const { layer, spans, packs } = ask;
    const held = holder.get(layer);
    if (held === undefined || held.spanCount > DISTRIBUTION_LIMITS.spans) return this.#end(response, 404, 'not-here');
    // Before a slot is taken: nobody who could be served now stands behind one who waits.
    if (!(await this.#arrived(layer, spans, ask.demand, signal))) return this.#busy(response);
    const taking = this.#slots.take(ask, signal);
    if (taking === undefined) return this.#busy(response);
    response.writeHead(200, { 'content-type': packs ? PACKED_SPANS : PLAIN_SPANS });
    // Whoever asks measures from here on how fast we are: we have what it wants, and the line is ours.
    response.flushHeaders();
    using slot = await taking;
    const startMs = performance.now();
    using lasting = new DisposableStack();
    lasting.adopt(setTimeout(() => slot.lasts(), this.#pace.lateMs).unref(), clearTimeout);
    for (const span of spans) {
      const sent = await this.#bytesOf(layer, span, packs);
      await this.#write(response, frameHeader(span, sent?.bytes.length, sent?.packed), signal);
      if (sent === undefined) continue;
      const { bytes, packed } = sent;
      const delayMs = this.#rate.delayMs(bytes.length, performance.now());
      if (delayMs > 0) await sleep(delayMs, undefined, { signal });
      metrics.sent.inc(bytes.length);
      // Packed spans stay for the next who asks.
      await this.#write(response, bytes, signal, packed ? undefined : () => releaseBytes(bytes));
    }
    // The slot is held until the bytes have left this process, so that slots mean what they say.
    response.end();
    if (!response.writableFinished) await once(response, 'finish', { signal });
    this.#pace.took(performance.now() - startMs);
    metrics.served.inc({ outcome: 'served' });
  }

  /** undefined = it is not here (any more). */
  async #bytesOf(
    layer: Digest,
    span: number,
    packs: boolean,
  ): Promise<{ readonly bytes: Uint8Array; readonly packed: boolean } | undefined> {
    const { holder, packed } = this.#options;
    const read = async () => (holder.has(layer, span) ? await holder.readPayload(layer, span) : undefined);
    const small = packs && holder.has(layer, span) ? await packed.get(layer, span, read) : undefined;
    if (small !== undefined) return { bytes: small, packed: true };
    const bytes = await read();
    return bytes && { bytes, packed: false };
  }

  /** `gone`: the bytes have left this process. */
  async #write(response: ServerResponse, bytes: Uint8Array, signal: AbortSignal, gone?: () => void): Promise<void> {
    const written = (error?: Error | null) => {
      if (error === undefined || error === null) gone?.();
    };
    if (response.write(bytes, written)) return;
    const timer = setTimeout(() => response.destroy(), STALL_MS);
    try {
      await once(response, 'drain', { signal });
    } finally {
      clearTimeout(timer);
    }
  }

  /** Waits for those of the spans that are on their way here. False: too many wait already. */
  async #arrived(layer: Digest, spans: readonly number[], demand: boolean, signal: AbortSignal): Promise<boolean> {
    const { holder, arriving, demanded } = this.#options;
    const missing = new Set(spans.filter((span) => !holder.has(layer, span) && arriving(layer, span)));
    if (missing.size === 0) return true;
    if (this.#waiting >= WAITING_REQUESTS) return false;
    this.#waiting++;
    const over = new AbortController();
    const until = AbortSignal.any([signal, over.signal, AbortSignal.timeout(ARRIVAL_MS)]);
    if (demand) for (const span of missing) demanded(layer, span, until);
    try {
      await new Promise<void>((resolve) => {
        const stop = holder.onResident((other, span) => {
          if (other === layer && missing.delete(span) && missing.size === 0) end();
        });
        // What is on its way may turn out not to be any more.
        const timer = setInterval(() => {
          for (const span of missing) if (!arriving(layer, span)) missing.delete(span);
          if (missing.size === 0) end();
        }, 100);
        const end = () => {
          stop();
          clearInterval(timer);
          until.removeEventListener('abort', end);
          resolve();
        };
        until.addEventListener('abort', end, { once: true });
        if (until.aborted) end();
      });
      signal.throwIfAborted();
      return true;
    } finally {
      this.#waiting--;
      over.abort();
    }
  }

  #busy(response: ServerResponse): void {
    this.#options.metrics.served.inc({ outcome: 'busy' });
    const waitMs = 20 + 15 * (this.#slots.active + this.#slots.queued);
    response.writeHead(503, { 'x-retry-after-ms': String(waitMs) }).end();
  }

  #end(response: ServerResponse, status: number, outcome: string): void {
    this.#options.metrics.served.inc({ outcome });
    response.writeHead(status).end();
  }
}
