import type { Logger } from '#shared/telemetry/logger.ts';
import type { Authenticator } from './authenticator.ts';
import { type BackOff, delayAfter, PROGRESS_BYTES, retryAfterMs } from './back-off.ts';
import { type Capability, type Endpoint, type Endpoints, MIRROR_REST_MS } from './endpoints.ts';
import { isLinkLocal, isLoopback } from './own-address.ts';
import { parseRepository, type RepositoryName } from './reference.ts';
import { RegistryError } from './registry-error.ts';
import { sleep } from './sleep.ts';
import {
  type Answer,
  cancelledError,
  dropBody,
  errorText,
  type Exchange,
  headerOf,
  networkError,
  type Transport,
} from './transport.ts';

/** A repository name with what is derived from it, worked out once. */
export interface Repository {
  readonly name: RepositoryName;
  readonly host: string;
  readonly path: string;
  readonly pullScope: string;
  readonly pushScope: string;
}

/** One request to a registry, as often tried as is safe. */
export interface Ask {
  readonly method: Exchange['method'];
  /** After `/v2/<repository>/`. */
  readonly path: string;
  readonly capability: Capability;
  /** Token scope; default by capability. */
  readonly scope?: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: Uint8Array;
  /** For messages: `manifest "latest"`. */
  readonly what: string;
  /** In place of ours; undefined = ours, empty = none. */
  readonly authorization?: string | undefined;
}

const REDIRECTS = 5;
const REPOSITORIES_KEPT = 4096;

/** Requests to registries: endpoints in turn, authorization, redirects, retries, and answers turned into errors. */
export class RegistrySession {
  readonly #transport: Transport;
  readonly #authenticator: Authenticator;
  readonly #endpoints: Endpoints;
  readonly #logger: Logger;
  readonly backOff: BackOff;
  readonly #repositories = new Map<RepositoryName, Repository>();
  /** Endpoints that have been asked what authorization they want. */
  readonly #probed = new Set<string>();

  constructor(
    transport: Transport,
    authenticator: Authenticator,
    endpoints: Endpoints,
    backOff: BackOff,
    logger: Logger,
  ) {
    this.#transport = transport;
    this.#authenticator = authenticator;
    this.#endpoints = endpoints;
    this.#logger = logger;
    this.backOff = backOff;
  }

  repository(name: RepositoryName): Repository {
    const known = this.#repositories.get(name);
    if (known !== undefined) return known;
    const { host, path } = parseRepository(name);
    if (this.#repositories.size >= REPOSITORIES_KEPT) this.#repositories.clear();
    const repository = {
      name,
      host,
      path,
      pullScope: `repository:${path}:pull`,
      pushScope: `repository:${path}:pull,push`,
    };
    this.#repositories.set(name, repository);
    return repository;
  }

  /** Tries `ask` until `read` has made something of an answer below 300. Only for what is safe to repeat. */
  async send<T>(
    repository: Repository,
    ask: Ask,
    read: (answer: Answer, endpoint: Endpoint) => Promise<T> | T,
    signal: AbortSignal,
  ): Promise<T> {
    return await this.retry(repository, ask, signal, async (endpoint) => {
      const answer = await this.follow(endpoint, repository, ask, signal);
      if (answer.status >= 300) throw await answerError(answer, repository, ask.what);
      try {
        return await read(answer, endpoint);
      } finally {
        if (!answer.body.readableEnded) answer.body.destroy();
      }
    });
  }

  /**
   * Runs `once` for one endpoint after the other, mirrors first, and again after a wait, until it resolves or fails for
   * good. `progress` says how many bytes have come: an attempt that brought some does not count against the bound.
   */
  async retry<T>(
    repository: Repository,
    ask: Pick<Ask, 'capability' | 'what'>,
    signal: AbortSignal,
    once: (endpoint: Endpoint) => Promise<T>,
    progress: () => number = () => 0,
  ): Promise<T> {
    const { host } = repository;
    let attempt = 1;
    let reached = progress();
    for (;;) {
      if (signal.aborted) throw cancelledError(host, signal);
      const tried = await this.#tryEach(repository, ask, signal, once);
      if ('value' in tried) return tried.value;
      const { error } = tried;
      if (progress() - reached >= PROGRESS_BYTES) {
        reached = progress();
        attempt = 1;
      }
      const patient = (error.retryAfterMs ?? 0) <= this.backOff.maxRetryAfterMs;
      if (!error.retryable || !patient || attempt >= this.backOff.attempts) throw error;
      const delayMs = delayAfter(attempt, this.backOff, error.retryAfterMs);
      this.#logger.debug(
        { host, repository: repository.path, attempt, delayMs, err: error },
        'asking a registry again',
      );
      try {
        await sleep(delayMs, signal);
      } catch {
        throw cancelledError(host, signal);
      }
      attempt++;
    }
  }

  async #tryEach<T>(
    repository: Repository,
    ask: Pick<Ask, 'capability' | 'what'>,
    signal: AbortSignal,
    once: (endpoint: Endpoint) => Promise<T>,
  ): Promise<{ readonly value: T } | { readonly error: RegistryError }> {
    const { host } = repository;
    let last: RegistryError | undefined;
    for (const endpoint of await this.#endpoints.of(host)) {
      if (!endpoint.capabilities.has(ask.capability)) continue;
      if (endpoint.isMirror && endpoint.downUntilMs > Date.now()) continue;
      try {
        return { value: await once(endpoint) };
      } catch (cause) {
        if (!(cause instanceof RegistryError)) throw cause;
        if (cause.code === 'cancelled') throw cause;
        last = cause;
        if (!endpoint.isMirror) break;
        if (cause.code === 'unreachable') endpoint.downUntilMs = Date.now() + MIRROR_REST_MS;
        this.#logger.debug({ mirror: endpoint.host, host, err: cause }, 'a mirror did not help');
      }
    }
    return {
      error:
        last ??
        new RegistryError(
          'refused',
          `Cannot ${ask.capability} from ${host}: no endpoint in its hosts.toml may do that`,
          {
            host,
            repository: repository.path,
          },
        ),
    };
  }

  /** One request to one endpoint with authorization, redirects followed. Any status may come back. */
  async follow(endpoint: Endpoint, repository: Repository, ask: Ask, signal: AbortSignal): Promise<Answer> {
    let answer = await this.ask(endpoint, repository, ask, signal);
    for (let hops = 0; answer.status >= 300 && answer.status < 400 && ask.method !== 'POST'; hops++) {
      const target = this.redirectTarget(answer, repository, ask.what);
      await dropBody(answer);
      if (target === undefined || hops >= REDIRECTS) {
        throw new RegistryError(
          'bad-answer',
          `Cannot get ${ask.what} of ${repository.name}: ${answer.url.host} redirects ${target === undefined ? 'to nowhere' : 'without end'}`,
          { host: repository.host, repository: repository.path, status: answer.status },
        );
      }
      answer = await this.askTarget(target, ask.method, ask.headers, signal);
    }
    return answer;
  }

  /** One request to one endpoint; a 401 is answered with better authorization once. Redirects come back as they are. */
  async ask(endpoint: Endpoint, repository: Repository, ask: Ask, signal: AbortSignal): Promise<Answer> {
    const scope = ask.scope ?? (ask.capability === 'push' ? repository.pushScope : repository.pullScope);
    const query = endpoint.query === '' ? '' : (ask.path.includes('?') ? '&' : '?') + endpoint.query;
    const url = new URL(`${endpoint.base}/${repository.path}/${ask.path}${query}`);
    const send = (authorization: string | undefined): Promise<Answer> =>
      this.#transport.exchange(
        {
          method: ask.method,
          url,
          headers: { ...endpoint.headers, ...ask.headers, ...(authorization ? { authorization } : {}) },
          body: ask.body ?? null,
          dispatcher: endpoint.dispatcher,
        },
        signal,
      );
    if (ask.authorization !== undefined) return await send(ask.authorization);
    const authorization = await this.#authorization(
      () => this.#authenticator.authorization(endpoint, scope, signal),
      repository,
      signal,
    );
    const answer = await send(authorization);
    if (answer.status !== 401) return answer;
    const next = await this.#authorization(
      () => this.#authenticator.challenged(endpoint, answer, scope, authorization, signal),
      repository,
      signal,
    ).catch((cause: unknown) => {
      answer.body.destroy();
      throw cause;
    });
    if (next === undefined) return answer;
    await dropBody(answer);
    return await send(next);
  }

  /** A request to what a registry redirected to: without any credentials. */
  askTarget(
    url: URL,
    method: Exchange['method'],
    headers: Readonly<Record<string, string>> | undefined,
    signal: AbortSignal,
  ): Promise<Answer> {
    return this.#transport.exchange({ method, url, headers: headers ?? {} }, signal);
  }

  /** Sends a body to an upload's location; our credentials go along only to the endpoint itself. */
  async upload(
    endpoint: Endpoint,
    repository: Repository,
    exchange: Pick<Exchange, 'method' | 'url' | 'headers' | 'body' | 'answerTimeoutMs'>,
    scope: string,
    signal: AbortSignal,
  ): Promise<Answer> {
    const isOwn = exchange.url.origin === new URL(endpoint.base).origin;
    const authorization = isOwn
      ? await this.#authorization(() => this.#authenticator.authorization(endpoint, scope, signal), repository, signal)
      : undefined;
    const headers = {
      ...(isOwn ? endpoint.headers : {}),
      ...exchange.headers,
      ...(authorization ? { authorization } : {}),
    };
    const dispatcher = isOwn ? endpoint.dispatcher : undefined;
    const answer = await this.#transport.exchange({ ...exchange, headers, dispatcher }, signal);
    if (answer.status === 401 && isOwn) {
      // The body is gone: the whole upload is tried again, with what the registry now wants.
      await this.#authenticator.challenged(endpoint, answer, scope, authorization, signal);
      await dropBody(answer);
      throw new RegistryError(
        'unauthorized',
        `${repository.host} refused an upload to ${repository.path}; log in to ${repository.host} with the right to push`,
        {
          host: repository.host,
          repository: repository.path,
          status: 401,
          retryable: true,
        },
      );
    }
    return answer;
  }

  /** Authorization for pulling from the registry itself; asks it what it wants where it has not said yet. */
  async authorizationOf(repository: Repository, signal: AbortSignal): Promise<string | undefined> {
    const endpoint = (await this.#endpoints.of(repository.host)).find((candidate) => !candidate.isMirror);
    if (endpoint === undefined) return undefined;
    const scope = repository.pullScope;
    if (!this.#authenticator.knows(endpoint) && !this.#probed.has(endpoint.base)) {
      const { headers, dispatcher } = endpoint;
      const answer = await this.#transport.exchange(
        { method: 'GET', url: new URL(`${endpoint.base}/`), headers, dispatcher },
        signal,
      );
      await dropBody(answer);
      if (answer.status < 500 && answer.status !== 429) this.#probed.add(endpoint.base);
      if (answer.status === 401) {
        const challenged = (): Promise<string | undefined> =>
          this.#authenticator.challenged(endpoint, answer, scope, undefined, signal);
        return await this.#authorization(challenged, repository, signal);
      }
    }
    return await this.#authorization(
      () => this.#authenticator.authorization(endpoint, scope, signal),
      repository,
      signal,
    );
  }

  /** Where an answer redirects to. A redirect from HTTPS to plain HTTP is refused, and so is one into link-local addresses. */
  redirectTarget(answer: Answer, repository: Repository, what: string): URL | undefined {
    const location = headerOf(answer, 'location');
    if (location === undefined || !URL.canParse(location, answer.url.href)) return undefined;
    const target = new URL(location, answer.url.href);
    const isPlain = target.protocol === 'http:';
    const downgraded = isPlain && answer.url.protocol === 'https:' && !this.#endpoints.isPlain(target.host);
    const isInside = isLoopback(target.host) && !isLoopback(answer.url.host);
    if (downgraded || isInside || !/^https?:$/.test(target.protocol) || isLinkLocal(target.host)) {
      throw new RegistryError(
        'refused',
        `Refused to follow ${answer.url.host} for ${what} of ${repository.name} to ${target.origin}: ${downgraded ? 'plain HTTP after HTTPS' : 'not a public address'}`,
        { host: repository.host, repository: repository.path, status: answer.status },
      );
    }
    return target;
  }

  async #authorization(
    get: () => Promise<string | undefined> | string | undefined,
    repository: Repository,
    signal: AbortSignal,
  ): Promise<string | undefined> {
    try {
      return await get();
    } catch (cause) {
      throw networkError(cause, repository.host, signal);
    }
  }
}

/** An answer of 300 and above as an error; reads the body for its message. */
export async function answerError(answer: Answer, repository: Repository, what: string): Promise<RegistryError> {
  const { host, path } = repository;
  const { status } = answer;
  const text = answer.status === 404 ? (await dropBody(answer), '') : messageOf(await errorText(answer));
  const afterMs = retryAfterMs(headerOf(answer, 'retry-after'), Date.now());
  const details = { host, repository: path, status, retryAfterMs: afterMs };
  const from = answer.url.host === host ? host : `${host} (${answer.url.host})`;
  const failed = `Cannot get ${what} of ${path} from ${from}: status ${status}${text === '' ? '' : ` (${text})`}`;
  if (status === 401 || status === 403) {
    return new RegistryError(
      'unauthorized',
      `${failed}; log in to ${host} with an account that may use ${path}`,
      details,
    );
  }
  if (status === 404) {
    return new RegistryError('not-found', `${failed}; check the name, or log in to ${host} if it is private`, details);
  }
  if (status === 429)
    return new RegistryError('rate-limited', `${failed}; ask less often, or log in for a higher limit`, details);
  if (status === 408 || status >= 500) {
    return new RegistryError('unreachable', `${failed}; the registry has trouble, try again later`, details);
  }
  return new RegistryError('bad-answer', `${failed}; the registry does not understand the request`, details);
}

/** The registry's own words where the body is its error document, else the start of it as one line. */
function messageOf(text: string): string {
  const messages = [...text.matchAll(/"message"\s*:\s*"((?:[^"\\]|\\.){1,300})"/g)].map((match) => match[1]);
  const shown = messages.length > 0 ? messages.slice(0, 3).join('; ') : text.slice(0, 200);
  return shown.replaceAll(/[^\x20-\x7e]+/g, ' ').trim();
}
