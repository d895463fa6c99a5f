import { Readable } from 'node:stream';
import type { Digest } from '#shared/digest/digest.ts';
import type { Endpoint } from './endpoints.ts';
import type { Descriptor } from './manifest.ts';
import { RegistryError } from './registry-error.ts';
import { answerError, type Ask, type RegistrySession, type Repository } from './registry-session.ts';
import { type Answer, dropBody, headerOf, TRANSPORT_LIMITS } from './transport.ts';

/** Tells an error of what is uploaded from one of the connection. */
class UploadSource {
  readonly #source: AsyncIterable<Uint8Array>;
  failure: unknown;

  constructor(source: AsyncIterable<Uint8Array>) {
    this.#source = source;
  }

  async *chunks(): AsyncGenerator<Uint8Array> {
    try {
      for await (const chunk of this.#source) yield chunk;
    } catch (cause) {
      this.failure = cause;
      throw cause;
    }
  }
}

/** Puts blobs into a repository. */
export class BlobWriter {
  readonly #session: RegistrySession;

  constructor(session: RegistrySession) {
    this.#session = session;
  }

  /** One attempt opens an upload and sends the whole blob; being named by its digest it can be sent again safely. */
  async upload(
    repository: Repository,
    blob: Pick<Descriptor, 'digest' | 'size'>,
    open: () => AsyncIterable<Uint8Array>,
    signal: AbortSignal,
  ): Promise<void> {
    const what = `an upload of blob ${blob.digest}`;
    await this.#session.retry(repository, { capability: 'push', what }, signal, async (endpoint) => {
      const location = await this.#start(endpoint, repository, 'blobs/uploads/', repository.pushScope, what, signal);
      if (location === undefined) return;
      location.searchParams.set('digest', blob.digest);
      const source = new UploadSource(open());
      const body = Readable.from(source.chunks(), { objectMode: false });
      // An upload that fails early ends its body with an error that belongs to nobody.
      body.on('error', () => {});
      try {
        const answer = await this.#session.upload(
          endpoint,
          repository,
          {
            method: 'PUT',
            url: location,
            headers: { 'content-type': 'application/octet-stream', 'content-length': String(blob.size) },
            body,
            answerTimeoutMs: TRANSPORT_LIMITS.commitTimeoutMs,
          },
          repository.pushScope,
          signal,
        );
        if (answer.status !== 201 && answer.status !== 204) throw await uploadError(answer, repository, blob.digest);
        await dropBody(answer);
      } catch (cause) {
        // A source that fails is no trouble of the registry's, and trying again is the caller's business.
        throw source.failure ?? cause;
      } finally {
        body.destroy();
      }
    });
  }

  /** True when the registry now has the blob in `repository` too. */
  async mount(repository: Repository, digest: Digest, from: Repository, signal: AbortSignal): Promise<boolean> {
    const what = `a mount of blob ${digest}`;
    const path = `blobs/uploads/?mount=${digest}&from=${encodeURIComponent(from.path)}`;
    const scope = `${repository.pushScope} ${from.pullScope}`;
    return await this.#session.retry(repository, { capability: 'push', what }, signal, async (endpoint) => {
      const location = await this.#start(endpoint, repository, path, scope, what, signal);
      if (location === undefined) return true;
      // The registry opened an ordinary upload in place of a mount: give it up. It expires by itself if that fails.
      try {
        const exchange = { method: 'DELETE', url: location } as const;
        await dropBody(await this.#session.upload(endpoint, repository, exchange, repository.pushScope, signal));
      } catch (cause) {
        if (!(cause instanceof RegistryError) || cause.code === 'cancelled') throw cause;
      }
      return false;
    });
  }

  /** Location of the upload; undefined when the blob is there already. */
  async #start(
    endpoint: Endpoint,
    repository: Repository,
    path: string,
    scope: string,
    what: string,
    signal: AbortSignal,
  ): Promise<URL | undefined> {
    const ask: Ask = { method: 'POST', path, capability: 'push', scope, what, headers: { 'content-length': '0' } };
    const answer = await this.#session.ask(endpoint, repository, ask, signal);
    if (answer.status >= 300) throw await answerError(answer, repository, what);
    await dropBody(answer);
    if (answer.status === 201) return undefined;
    const location = headerOf(answer, 'location');
    if (answer.status !== 202 || location === undefined || !URL.canParse(location, answer.url.href)) {
      const { host, path } = repository;
      throw new RegistryError(
        'bad-answer',
        `${host} answered ${answer.status} without a location to ${what} to ${path}`,
        {
          host,
          repository: path,
          status: answer.status,
        },
      );
    }
    const url = new URL(location, answer.url.href);
    // Registries behind a proxy that ends TLS often write http:// here.
    if (url.host === answer.url.host) url.protocol = answer.url.protocol;
    return url;
  }
}

async function uploadError(answer: Answer, repository: Repository, digest: Digest): Promise<RegistryError> {
  const error = await answerError(answer, repository, `blob ${digest} stored`);
  // An upload that expired or was lost by a restarted registry is begun anew.
  if (answer.status !== 404 && answer.status !== 416) return error;
  return new RegistryError('unreachable', `${error.message}; the upload was lost`, {
    host: repository.host,
    repository: repository.path,
    status: answer.status,
    cause: error,
  });
}
