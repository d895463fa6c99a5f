import type { Agent, Dispatcher } from 'undici';
import { newHttpAgent, newProxyAgent } from '#shared/http/http-agent.ts';
import { PACE, paced } from './body-pace.ts';
import { RegistryError } from './registry-error.ts';

export const TRANSPORT_LIMITS = {
  /** Connections to one origin: demand reads of many containers must not queue behind each other. */
  connectionsPerOrigin: 96,
  /** Bytes of an error's body that are read for its message. */
  errorBytes: 16 * 1024,
  /** A registry may take long to store an uploaded blob before it answers. */
  commitTimeoutMs: 300_000,
} as const;

export interface TransportOptions {
  readonly connectTimeoutMs: number;
  readonly idleTimeoutMs: number;
  readonly userAgent: string;
}

/** Options of TLS for one host, as hosts.toml gives them. */
export interface TlsOptions {
  readonly ca?: readonly Buffer[];
  readonly client?: { readonly cert: Buffer; readonly key: Buffer };
  readonly skipVerify?: boolean;
}

export interface Exchange {
  readonly method: 'GET' | 'HEAD' | 'POST' | 'PUT' | 'PATCH' | 'DELETE';
  readonly url: URL;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: Dispatcher.DispatchOptions['body'];
  readonly dispatcher?: Dispatcher | undefined;
  readonly answerTimeoutMs?: number;
}

/** The head of an answer; `body` must be read or dropped. */
export interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly body: Dispatcher.ResponseData['body'];
  readonly url: URL;
}

/**
 * Connections of the whole process to registries and what they redirect to. One exchange each: no retries, no
 * redirects, no credentials. Rejects with RegistryError `unreachable` or `cancelled`.
 */
export class Transport {
  readonly #options: TransportOptions;
  readonly #agent: Dispatcher;
  readonly #own: Dispatcher[] = [];

  constructor(options: TransportOptions) {
    this.#options = options;
    this.#agent = this.#create(undefined);
  }

  /** Connections with TLS options of their own. */
  dispatcherFor(tls: TlsOptions): Dispatcher {
    return this.#create(tls);
  }

  async exchange(exchange: Exchange, signal: AbortSignal): Promise<Answer> {
    const { url } = exchange;
    try {
      const { statusCode, headers, body } = await (exchange.dispatcher ?? this.#agent).request({
        origin: url.origin,
        path: url.pathname + url.search,
        method: exchange.method,
        headers: { 'user-agent': this.#options.userAgent, 'accept-encoding': 'identity', ...exchange.headers },
        body: exchange.body ?? null,
        signal,
        headersTimeout: exchange.answerTimeoutMs ?? this.#options.idleTimeoutMs,
        bodyTimeout: this.#options.idleTimeoutMs,
      });
      // A body that is destroyed before it is read reports that as an error, to nobody.
      body.on('error', ignore);
      return { status: statusCode, headers, body, url };
    } catch (cause) {
      throw networkError(cause, url.host, signal);
    }
  }

  async close(): Promise<void> {
    await Promise.all(this.#own.map((dispatcher) => dispatcher.destroy()));
  }

  #create(tls: TlsOptions | undefined): Dispatcher {
    const options: Agent.Options = {
      connections: TRANSPORT_LIMITS.connectionsPerOrigin,
      pipelining: 1,
      keepAliveTimeout: 30_000,
      keepAliveMaxTimeout: 120_000,
      connect: {
        timeout: this.#options.connectTimeoutMs,
        ...(tls?.ca === undefined ? {} : { ca: [...tls.ca] }),
        ...(tls?.client === undefined ? {} : { cert: tls.client.cert, key: tls.client.key }),
        ...(tls?.skipVerify === true ? { rejectUnauthorized: false } : {}),
      },
    };
    const { env } = process;
    const proxied = env['HTTPS_PROXY'] ?? env['https_proxy'] ?? env['HTTP_PROXY'] ?? env['http_proxy'];
    const noProxy = [env['NO_PROXY'] ?? env['no_proxy'] ?? '', 'localhost', '127.0.0.1', '::1'].join(',');
    const dispatcher = proxied ? newProxyAgent({ ...options, noProxy }) : newHttpAgent(options);
    this.#own.push(dispatcher);
    return dispatcher;
  }
}

/** What went wrong between us and `host`, as RegistryError. One that is a RegistryError already stays as it is. */
export function networkError(cause: unknown, host: string, signal: AbortSignal): RegistryError {
  if (cause instanceof RegistryError) return cause;
  if (signal.aborted) return cancelledError(host, signal);
  const detail =
    cause instanceof Error ? cause.message || String('code' in cause ? cause.code : cause.name) : String(cause);
  return new RegistryError(
    'unreachable',
    `Cannot reach ${host}: ${detail}. Check that the host is up, its name resolves, and whether it speaks plain HTTP`,
    { host, cause },
  );
}

export function cancelledError(host: string, signal: AbortSignal): RegistryError {
  return new RegistryError('cancelled', `Stopped asking ${host}: the caller gave up`, { host, cause: signal.reason });
}

export function headerOf(answer: Pick<Answer, 'headers'>, name: string): string | undefined {
  const value = answer.headers[name];
  return typeof value === 'string' ? value : value?.[0];
}

/** Reads a body to its end; `too-large` past `maxBytes`. */
export async function readBody(answer: Answer, maxBytes: number, what: string, signal: AbortSignal): Promise<Buffer> {
  const { host } = answer.url;
  const tooLarge = (): RegistryError =>
    new RegistryError('too-large', `Refused ${what} from ${host}: larger than ${maxBytes} bytes`, { host });
  const parts: Buffer[] = [];
  let length = 0;
  try {
    if (Number(headerOf(answer, 'content-length') ?? 0) > maxBytes) throw tooLarge();
    for await (const chunk of chunksOf(answer)) {
      length += chunk.length;
      if (length > maxBytes) throw tooLarge();
      parts.push(chunk);
    }
  } catch (cause) {
    answer.body.destroy();
    throw networkError(cause, host, signal);
  }
  return parts.length === 1 && parts[0] !== undefined ? parts[0] : Buffer.concat(parts, length);
}

/** Ends with an answer whose body nobody wants, keeping the connection where that is cheap. Never rejects. */
export async function dropBody(answer: Answer): Promise<void> {
  await errorText(answer);
}

/** The start of a body as text, for a message. Never rejects. */
export async function errorText(answer: Answer): Promise<string> {
  const parts: Buffer[] = [];
  let length = 0;
  try {
    for await (const chunk of chunksOf(answer)) {
      parts.push(chunk);
      length += chunk.length;
      if (length > TRANSPORT_LIMITS.errorBytes) break;
    }
  } catch {
    // The status alone must do.
  }
  return Buffer.concat(parts).toString('utf8', 0, TRANSPORT_LIMITS.errorBytes);
}

/** A body as it comes; `unreachable` where it only trickles. */
export function chunksOf(answer: Answer): AsyncIterable<Buffer> {
  const { host } = answer.url;
  return paced(
    answer.body as AsyncIterable<Buffer>,
    () =>
      new RegistryError(
        'unreachable',
        `Stopped reading from ${host}: it sent less than ${PACE.bytes} bytes in ${PACE.ms / 1000} s`,
        { host },
      ),
  );
}

function ignore(): void {}
