import { z } from 'zod';
import { type BackOff, delayAfter, retryAfterMs } from './back-off.ts';
import { parseChallenge, type Challenge } from './challenge.ts';
import type { Credential, CredentialSource } from './credentials.ts';
import type { Endpoint } from './endpoints.ts';
import { isLinkLocal, isLoopback } from './own-address.ts';
import { RegistryError } from './registry-error.ts';
import { SingleFlight } from './single-flight.ts';
import { sleep } from './sleep.ts';
import { type Answer, errorText, headerOf, readBody, type Transport } from './transport.ts';

export const TOKEN_LIMITS = {
  /** Bytes of a token server's answer; tokens are a few KiB. */
  answerBytes: 1024 * 1024,
  /** Time for getting one token, retries included. */
  timeoutMs: 30_000,
  /** Tokens kept; the least recently made go first. */
  kept: 10_000,
  /** Lifetime where the answer tells none, by the token specification. */
  defaultLifetimeMs: 60_000,
  /** A credential helper is not asked again before this. */
  credentialMs: 300_000,
} as const;

interface Token {
  readonly value: string;
  readonly refreshAtMs: number;
}

const tokenAnswer = z.object({
  token: z.string().optional(),
  access_token: z.string().optional(),
  expires_in: z.number().positive().optional(),
});

/**
 * Knows how each endpoint wants to be asked: with nothing, Basic, or a token per scope. One token per endpoint and
 * scope, gotten once however many wait for it, and renewed before it expires.
 */
export class Authenticator {
  readonly #transport: Transport;
  readonly #credentials: CredentialSource;
  readonly #backOff: BackOff;
  readonly #challenges = new Map<string, Challenge>();
  readonly #tokens = new Map<string, Token>();
  /** Scopes as the registry's challenge wrote them, where they differ from what we would ask. */
  readonly #scopes = new Map<string, readonly string[]>();
  readonly #basic = new Map<string, { readonly credential: Credential | undefined; readonly untilMs: number }>();
  readonly #flight = new SingleFlight<string | undefined>();

  constructor(transport: Transport, credentials: CredentialSource, backOff: BackOff) {
    this.#transport = transport;
    this.#credentials = credentials;
    this.#backOff = backOff;
  }

  /** Whether the endpoint has said what it wants. */
  knows(endpoint: Endpoint): boolean {
    return this.#challenges.has(endpoint.base);
  }

  /** Value of the Authorization header for `scope` (space-separated), as far as the endpoint has told what it wants. */
  authorization(
    endpoint: Endpoint,
    scope: string,
    signal: AbortSignal,
  ): Promise<string | undefined> | string | undefined {
    const challenge = this.#challenges.get(endpoint.base);
    if (challenge === undefined) return undefined;
    if (challenge.kind === 'basic') {
      return this.#flight.run(`basic ${endpoint.base}`, () => this.#basicOf(endpoint), signal);
    }
    const key = `${endpoint.base} ${scope}`;
    const token = this.#tokens.get(key);
    if (token !== undefined && Date.now() < token.refreshAtMs) return token.value;
    return this.#flight.run(key, () => this.#tokenOf(endpoint, challenge, scope, key), signal);
  }

  /**
   * Learns from a 401 that answered a request made with `used`. Resolves the header for the next try; undefined when
   * there is nothing better to try.
   */
  async challenged(
    endpoint: Endpoint,
    answer: Pick<Answer, 'headers'>,
    scope: string,
    used: string | undefined,
    signal: AbortSignal,
  ): Promise<string | undefined> {
    const header = answer.headers['www-authenticate'];
    const challenge = parseChallenge(Array.isArray(header) ? header.join(', ') : (header ?? ''));
    if (challenge === undefined) return undefined;
    this.#challenges.set(endpoint.base, challenge);
    const key = `${endpoint.base} ${scope}`;
    if (challenge.kind === 'bearer') {
      this.#scopes.set(key, [...new Set([...scope.split(' '), ...(challenge.scope ?? '').split(' ')])].filter(Boolean));
      evict(this.#scopes);
      // Another request may have renewed it meanwhile.
      if (this.#tokens.get(key)?.value === used) this.#tokens.delete(key);
    } else {
      this.#basic.delete(endpoint.host);
    }
    const next = await this.authorization(endpoint, scope, signal);
    return next === used ? undefined : next;
  }

  async #basicOf(endpoint: Endpoint): Promise<string | undefined> {
    const credential = await this.#credentialOf(endpoint.host);
    if (credential?.kind !== 'password') return undefined;
    return basicHeader(credential);
  }

  async #credentialOf(host: string): Promise<Credential | undefined> {
    const known = this.#basic.get(host);
    if (known !== undefined && Date.now() < known.untilMs) return known.credential;
    const credential = await this.#credentials.credential(host, AbortSignal.timeout(TOKEN_LIMITS.timeoutMs));
    this.#basic.set(host, { credential, untilMs: Date.now() + TOKEN_LIMITS.credentialMs });
    return credential;
  }

  async #tokenOf(
    endpoint: Endpoint,
    challenge: Challenge & { kind: 'bearer' },
    scope: string,
    key: string,
  ): Promise<string> {
    const signal = AbortSignal.timeout(TOKEN_LIMITS.timeoutMs);
    const realm = this.#realmOf(endpoint, challenge.realm);
    const scopes = this.#scopes.get(key) ?? scope.split(' ');
    for (let attempt = 1; ; attempt++) {
      try {
        // A changed password must count at once when the old one was refused: helpers are asked for every token.
        this.#basic.delete(endpoint.host);
        const credential = await this.#credentialOf(endpoint.host);
        const token = await this.#requestToken(endpoint, realm, challenge.service, scopes, credential, signal);
        this.#tokens.set(key, token);
        evict(this.#tokens);
        return token.value;
      } catch (cause) {
        if (!(cause instanceof RegistryError) || !cause.retryable || attempt >= this.#backOff.attempts) throw cause;
        await sleep(delayAfter(attempt, this.#backOff, cause.retryAfterMs), signal);
      }
    }
  }

  /**
   * A token server is named by the registry: it must not be a way to make us send a password in the clear, nor to make us ask what
   * only this machine reaches.
   */
  #realmOf(endpoint: Endpoint, text: string): URL {
    const { host } = endpoint;
    const realm = URL.canParse(text) ? new URL(text) : undefined;
    if (realm === undefined || !/^https?:$/.test(realm.protocol)) {
      throw new RegistryError('bad-answer', `${host} names a token server that is no URL: ${text.slice(0, 200)}`, {
        host,
      });
    }
    const isInside = isLoopback(realm.host) && !isLoopback(new URL(endpoint.base).host);
    if (isInside || isLinkLocal(realm.host)) {
      throw new RegistryError(
        'refused',
        `Refused to ask ${realm.host} for a token: ${host} names it, and it is not a public address`,
        { host },
      );
    }
    if (realm.protocol === 'http:' && endpoint.base.startsWith('https:') && !isLoopback(realm.host)) {
      throw new RegistryError(
        'refused',
        `Refused to ask ${realm.host} for a token: ${host} speaks HTTPS but names a token server in plain HTTP`,
        { host },
      );
    }
    return realm;
  }

  async #requestToken(
    endpoint: Endpoint,
    realm: URL,
    service: string | undefined,
    scopes: readonly string[],
    credential: Credential | undefined,
    signal: AbortSignal,
  ): Promise<Token> {
    const { host } = endpoint;
    const url = new URL(realm);
    let exchange;
    if (credential?.kind === 'identity-token') {
      const form = new URLSearchParams({
        grant_type: 'refresh_token',
        refresh_token: credential.identityToken,
        client_id: 'kindling',
        scope: scopes.join(' '),
      });
      if (service !== undefined) form.set('service', service);
      const headers = { 'content-type': 'application/x-www-form-urlencoded' };
      exchange = { method: 'POST', url, headers, body: form.toString() } as const;
    } else {
      if (service !== undefined) url.searchParams.set('service', service);
      for (const scope of scopes) url.searchParams.append('scope', scope);
      const headers: Record<string, string> =
        credential === undefined ? {} : { authorization: basicHeader(credential) };
      exchange = { method: 'GET', url, headers } as const;
    }
    const answer = await this.#transport.exchange(exchange, signal);
    if (answer.status !== 200) throw await refusedToken(answer, host, realm, credential);
    const body = await readBody(answer, TOKEN_LIMITS.answerBytes, 'a token', signal);
    const parsed = tokenAnswer.safeParse(jsonOf(body));
    const value = parsed.success ? parsed.data.token || parsed.data.access_token : undefined;
    if (value === undefined || /[^\x21-\x7e]/.test(value)) {
      throw new RegistryError('bad-answer', `Token server ${realm.host} of ${host} answered without a token`, { host });
    }
    const lifetimeMs =
      parsed.data?.expires_in === undefined ? TOKEN_LIMITS.defaultLifetimeMs : parsed.data.expires_in * 1000;
    return { value: `Bearer ${value}`, refreshAtMs: Date.now() + Math.max(lifetimeMs * 0.8, lifetimeMs - 60_000) };
  }
}

function basicHeader(credential: Credential & { kind: 'password' }): string {
  return `Basic ${Buffer.from(`${credential.username}:${credential.password}`).toString('base64')}`;
}

async function refusedToken(
  answer: Answer,
  host: string,
  realm: URL,
  credential: Credential | undefined,
): Promise<RegistryError> {
  const { status } = answer;
  const text = (await errorText(answer)).slice(0, 300);
  const where = `token server ${realm.host} of ${host} answered ${status}`;
  if (status === 429) {
    const afterMs = retryAfterMs(headerOf(answer, 'retry-after'), Date.now());
    return new RegistryError('rate-limited', `Got no token: ${where}; wait and try again`, {
      host,
      status,
      retryAfterMs: afterMs,
    });
  }
  if (status >= 500) return new RegistryError('unreachable', `Got no token: ${where}: ${text}`, { host, status });
  const advice = credential === undefined ? `log in to ${host}` : `check the credentials for ${host}`;
  return new RegistryError('unauthorized', `Got no token: ${where}; ${advice}. ${text}`, { host, status });
}

function jsonOf(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString('utf8'));
  } catch {
    return undefined;
  }
}

function evict(map: Map<string, unknown>): void {
  for (const key of map.keys()) {
    if (map.size <= TOKEN_LIMITS.kept) return;
    map.delete(key);
  }
}
