import { createHash, timingSafeEqual } from 'node:crypto';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { BusError, type Bus } from '#shared/bus/bus.ts';
import { toBus } from '#shared/events/image-events.ts';
import { createServer } from '#shared/http/node-http.ts';
import type { AllowedRepositories } from '#shared/registry/allowed-repositories.ts';
import type { Logger } from '#shared/telemetry/logger.ts';
import { Counter, type Registry } from '#shared/telemetry/metrics.ts';
import { IntakeError, takeCloudEvents, takeNotification, type Taken } from './intake.ts';
import type { Address } from '#shared/config/settings.ts';

export interface GatewayServerDeps {
  readonly bus: Bus;
  readonly allowed: AllowedRepositories;
  readonly tokens: readonly string[];
  readonly metrics: Registry;
  readonly logger: Logger;
  readonly now?: () => Date;
}

const LIMITS = {
  /** A registry batches some dozens of events of 1 KiB. */
  bodyBytes: 1024 * 1024,
  /** Senders that trickle their bytes are cut. */
  requestMs: 15_000,
  connections: 512,
} as const;

const STATUS = { malformed: 400, 'too-large': 413, unsupported: 415, forbidden: 403 } as const;

/**
 * `POST /v1/events` (CloudEvents), `POST /v1/registry-events` (notifications of a registry): 202 once all events are durable on the
 * bus; 4xx = never send this again, 503 = again later. `GET /healthz`, `GET /metrics` without a token.
 */
export class GatewayServer implements AsyncDisposable {
  readonly #deps: GatewayServerDeps;
  readonly #server: Server;
  readonly #stop = new AbortController();
  readonly #tokens: readonly Buffer[];
  readonly #events: Counter<'type' | 'outcome'>;
  readonly #requests: Counter<'status'>;

  private constructor(deps: GatewayServerDeps) {
    this.#deps = deps;
    this.#tokens = deps.tokens.map(hashed);
    this.#events = new Counter({
      name: 'kindling_gateway_events_total',
      help: 'Events taken in, by type and outcome (published, duplicate, ignored)',
      labelNames: ['type', 'outcome'],
      registers: [deps.metrics],
    });
    this.#requests = new Counter({
      name: 'kindling_gateway_requests_total',
      help: 'Requests with events, by status',
      labelNames: ['status'],
      registers: [deps.metrics],
    });
    this.#server = createServer(
      { requestTimeout: LIMITS.requestMs, headersTimeout: LIMITS.requestMs },
      (request, response) => {
        this.#serve(request, response).catch((error: unknown) => {
          deps.logger.error({ err: error }, 'a request failed');
          response.destroy();
        });
      },
    );
    this.#server.maxConnections = LIMITS.connections;
  }

  static async listen(deps: GatewayServerDeps, address: Address): Promise<GatewayServer> {
    const gateway = new GatewayServer(deps);
    await new Promise<void>((resolve, reject) => {
      gateway.#server.once('error', reject);
      gateway.#server.listen(address.port, address.host, resolve);
    });
    return gateway;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#stop.abort();
    this.#server.closeIdleConnections();
    const timer = setTimeout(() => this.#server.closeAllConnections(), 2_000);
    await closed;
    clearTimeout(timer);
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const path = (request.url ?? '').split('?')[0];
    if (path === '/healthz') {
      const ok = this.#deps.bus.connected();
      response
        .writeHead(ok ? 200 : 503, { 'content-type': 'text/plain' })
        .end(ok ? 'ok\n' : 'the bus is not reachable\n');
      return;
    }
    if (path === '/metrics') {
      const text = await this.#deps.metrics.metrics();
      response.writeHead(200, { 'content-type': this.#deps.metrics.contentType }).end(text);
      return;
    }
    if (path !== '/v1/events' && path !== '/v1/registry-events') {
      answer(response, 404, { code: 'not-found', message: 'POST /v1/events or /v1/registry-events' });
      return;
    }
    const { status, body } = await this.#take(request, path);
    this.#requests.inc({ status: String(status) });
    // What was not read of a refused body must not be taken for the next request.
    if (!request.complete) response.setHeader('connection', 'close');
    answer(response, status, body);
  }

  async #take(request: IncomingMessage, path: string): Promise<{ status: number; body: object }> {
    if (request.method !== 'POST') return refusal(405, 'method', 'Use POST');
    // Before the body: strangers cost us no memory.
    if (!this.#isKnown(request.headers.authorization)) {
      return refusal(401, 'unauthorized', 'Send "Authorization: Bearer TOKEN" with a token of KINDLING_GATEWAY_TOKENS');
    }
    try {
      const bytes = await readBody(request);
      const { allowed } = this.#deps;
      const taken =
        path === '/v1/events' ? takeCloudEvents(request.headers, bytes, allowed) : takeNotification(bytes, allowed);
      return { status: 202, body: await this.#publish(taken) };
    } catch (error) {
      if (error instanceof IntakeError) return refusal(STATUS[error.code], error.code, error.message);
      if (error instanceof BusError) {
        this.#deps.logger.warn({ err: error }, 'events could not be kept');
        return refusal(503, 'unavailable', 'The events could not be kept; send them again later');
      }
      throw error;
    }
  }

  async #publish({ events, ignored }: Taken): Promise<object> {
    let duplicates = 0;
    const now = (this.#deps.now ?? (() => new Date()))();
    for (const event of events) {
      const { duplicate } = await this.#deps.bus.events.publish(toBus(event, now), this.#stop.signal);
      if (duplicate) duplicates += 1;
      this.#events.inc({ type: event.type, outcome: duplicate ? 'duplicate' : 'published' });
      this.#deps.logger.info({ type: event.type, image: event.data.image, duplicate }, 'took an event');
    }
    if (ignored > 0) this.#events.inc({ type: 'image.pushed', outcome: 'ignored' }, ignored);
    return { accepted: events.length, duplicates, ignored };
  }

  #isKnown(authorization: string | undefined): boolean {
    const token = /^Bearer +(\S+)$/i.exec(authorization ?? '')?.[1];
    if (token === undefined) return false;
    const sent = hashed(token);
    // All of them, always: the time tells neither how much matched nor which.
    return this.#tokens.map((known) => timingSafeEqual(known, sent)).includes(true);
  }
}

function hashed(token: string): Buffer {
  return createHash('sha256').update(token).digest();
}

async function readBody(request: IncomingMessage): Promise<Buffer> {
  const tooLarge = () => new IntakeError('too-large', `Cannot take a body of more than ${LIMITS.bodyBytes} bytes`);
  if (Number(request.headers['content-length'] ?? 0) > LIMITS.bodyBytes) throw tooLarge();
  const parts: Buffer[] = [];
  let size = 0;
  try {
    // Not by iterating: leaving a loop over a request destroys its socket, and with it our answer.
    return await new Promise<Buffer>((resolve, reject) => {
      request.on('data', (part: Buffer) => {
        size += part.length;
        if (size > LIMITS.bodyBytes) reject(tooLarge());
        else parts.push(part);
      });
      request.once('end', () => resolve(Buffer.concat(parts)));
      request.once('error', (cause) => reject(new IntakeError('malformed', 'The request was cut short', { cause })));
      request.once('aborted', () => reject(new IntakeError('malformed', 'The request was cut short')));
    });
  } finally {
    request.removeAllListeners('data');
    request.pause();
  }
}

function refusal(status: number, code: string, message: string): { status: number; body: object } {
  return { status, body: { code, message } };
}

function answer(response: ServerResponse, status: number, body: object): void {
  const text = `${JSON.stringify(body)}\n`;
  const extra = status === 503 ? { 'retry-after': '5' } : status === 401 ? { 'www-authenticate': 'Bearer' } : {};
  response.writeHead(status, { 'content-type': 'application/json', ...extra }).end(text);
}
