import { chmod, mkdir, rename, rm } from 'node:fs/promises';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import { dirname } from 'node:path';
import { BUS_LIMITS } from '#shared/bus/bus.ts';
import { createServer } from '#shared/http/node-http.ts';
import {
  CONTROL_LIMITS,
  deadLetterRequest,
  pullRequest,
  type AgentStatus,
  type DeadLetterRequest,
  type LayerStatus,
  type PullEvent,
  type PullRequest,
  type Trace,
} from '#shared/control/control-protocol.ts';
import type { DeadLetterView } from '#shared/events/dead-letter.ts';
import type { Logger } from '#shared/telemetry/logger.ts';

/** What the agent can be asked. */
export interface ControlHandlers {
  status(signal: AbortSignal): Promise<AgentStatus>;
  layers(): readonly LayerStatus[];
  trace(since: number | undefined): Trace;
  pull(request: PullRequest, signal: AbortSignal): AsyncIterable<PullEvent>;
  /** @throws Error when there is no keeper to do it. */
  reload(): void;
  /** @throws Error when this node takes no events. */
  deadLetters(limit: number, signal: AbortSignal): Promise<readonly DeadLetterView[]>;
  settleDeadLetter(request: DeadLetterRequest, signal: AbortSignal): Promise<boolean>;
}

class ControlRequestError extends Error {
  override readonly name = 'ControlRequestError';
  readonly code: 'invalid' | 'not-found';
  readonly status: number;
  constructor(code: 'invalid' | 'not-found', message: string) {
    super(message);
    this.code = code;
    this.status = code === 'invalid' ? 400 : 404;
  }
}

/** Serves shared/control on a unix socket. */
export class ControlServer {
  readonly #server: Server;

  private constructor(server: Server) {
    this.#server = server;
  }

  static async listen(path: string, handlers: ControlHandlers, logger: Logger): Promise<ControlServer> {
    const server = createServer((request, response) => {
      answer(request, response, handlers).catch((error: unknown) => fail(response, error, logger));
    });
    await mkdir(dirname(path), { recursive: true });
    const fresh = `${path}.${process.pid}`;
    await rm(fresh, { force: true });
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(fresh, resolve);
    });
    await chmod(fresh, 0o600);
    // In the place of the socket of an agent that was killed, or is being replaced.
    await rename(fresh, path);
    return new ControlServer(server);
  }

  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#server.closeAllConnections();
    await closed;
  }
}

async function answer(request: IncomingMessage, response: ServerResponse, handlers: ControlHandlers): Promise<void> {
  const gone = new AbortController();
  response.once('close', () => gone.abort(new Error('The client has gone')));
  const url = new URL(request.url ?? '/', 'http://agent');
  switch (`${request.method} ${url.pathname}`) {
    case 'GET /v1/status':
      return send(response, await handlers.status(gone.signal));
    case 'GET /v1/layers':
      return send(response, handlers.layers());
    case 'GET /v1/trace': {
      const since = url.searchParams.get('since');
      return send(response, handlers.trace(since === null ? undefined : Number(since)));
    }
    case 'GET /v1/dead-letters': {
      const limit = Number(url.searchParams.get('limit'));
      if (!Number.isSafeInteger(limit) || limit < 1 || limit > BUS_LIMITS.deadLetters)
        throw new ControlRequestError('invalid', `The limit is a number from 1 to ${BUS_LIMITS.deadLetters}`);
      return send(response, await handlers.deadLetters(limit, gone.signal));
    }
    case 'POST /v1/dead-letters': {
      const parsed = deadLetterRequest.safeParse(await readJson(request));
      if (!parsed.success)
        throw new ControlRequestError(
          'invalid',
          `Cannot do that with a dead letter: ${parsed.error.issues[0]?.message}`,
        );
      return send(response, { found: await handlers.settleDeadLetter(parsed.data, gone.signal) });
    }
    case 'POST /v1/reload':
      handlers.reload();
      return send(response, {});
    case 'POST /v1/pull': {
      const parsed = pullRequest.safeParse(await readJson(request));
      if (!parsed.success) throw new ControlRequestError('invalid', `Cannot pull: ${parsed.error.issues[0]?.message}`);
      response.writeHead(200, { 'content-type': 'application/x-ndjson' });
      for await (const event of handlers.pull(parsed.data, gone.signal)) response.write(`${JSON.stringify(event)}\n`);
      response.end();
      return;
    }
    default:
      throw new ControlRequestError('not-found', `The agent has no ${request.method} ${url.pathname}`);
  }
}

async function readJson(request: IncomingMessage): Promise<unknown> {
  const parts: Buffer[] = [];
  let size = 0;
  for await (const part of request as AsyncIterable<Buffer>) {
    size += part.length;
    if (size > CONTROL_LIMITS.requestBytes) throw new ControlRequestError('invalid', 'The request is too long');
    parts.push(part);
  }
  try {
    return JSON.parse(Buffer.concat(parts).toString());
  } catch {
    throw new ControlRequestError('invalid', 'The request is not JSON');
  }
}

function send(response: ServerResponse, json: unknown): void {
  response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(json));
}

function fail(response: ServerResponse, error: unknown, logger: Logger): void {
  if (response.destroyed) return;
  const known = error instanceof ControlRequestError;
  if (!known) logger.error({ err: error }, 'A control request failed');
  const code = known ? error.code : 'failed';
  const message = error instanceof Error ? error.message : String(error);
  if (response.headersSent) {
    response.end(`${JSON.stringify({ kind: 'failed', code, message })}\n`);
    return;
  }
  response
    .writeHead(known ? error.status : 500, { 'content-type': 'application/json' })
    .end(JSON.stringify({ code, message }));
}
