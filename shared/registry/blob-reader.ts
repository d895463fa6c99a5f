import { createHash } from 'node:crypto';
import { hexOf, type Digest } from '#shared/digest/digest.ts';
import { PROGRESS_BYTES } from './back-off.ts';
import type { Endpoint } from './endpoints.ts';
import type { Descriptor } from './manifest.ts';
import { RegistryError } from './registry-error.ts';
import { answerError, type RegistrySession, type Repository } from './registry-session.ts';
import { type Answer, chunksOf, dropBody, headerOf, networkError } from './transport.ts';

export const BLOB_LIMITS = {
  /** A redirect target is asked anew after this, though it might live longer: signed URLs are mostly good for 15-60 min. */
  targetMs: 300_000,
  /** Redirect targets kept. */
  targets: 4096,
  redirects: 5,
} as const;

interface Target {
  readonly url: URL;
  readonly untilMs: number;
}

/** Where a run of wanted bytes is. `end` (exclusive) undefined = to the end of the blob. */
interface Wanted {
  readonly digest: Digest;
  readonly start: number;
  readonly end: number | undefined;
}

/**
 * Reads blobs and ranges of them. The target of a registry's redirect is kept and asked directly until it expires or
 * refuses. A read whose connection breaks goes on where it stopped.
 */
export class BlobReader {
  readonly #session: RegistrySession;
  readonly #targets = new Map<string, Target>();

  constructor(session: RegistrySession) {
    this.#session = session;
  }

  /** Exactly the bytes `start` to `end`, in a buffer of their own. Not verified. */
  async readRange(
    repository: Repository,
    digest: Digest,
    start: number,
    end: number,
    signal: AbortSignal,
  ): Promise<Buffer> {
    checkRange(repository, digest, start, end);
    const buffer = Buffer.allocUnsafeSlow(end - start);
    let filled = 0;
    if (end === start) return buffer;
    const what = `bytes ${start}-${end - 1} of blob ${digest}`;
    await this.#session.retry(
      repository,
      { capability: 'pull', what },
      signal,
      async (endpoint) => {
        const wanted = { digest, start: start + filled, end };
        await this.#read(endpoint, repository, wanted, what, signal, (chunk) => {
          chunk.copy(buffer, filled);
          filled += chunk.length;
        });
      },
      () => filled,
    );
    return buffer;
  }

  /** The bytes from `start` to `end` (undefined = all that follow) as they come. Not verified. */
  async *stream(
    repository: Repository,
    digest: Digest,
    start: number,
    end: number | undefined,
    signal: AbortSignal,
  ): AsyncGenerator<Buffer, void, undefined> {
    if (end !== undefined) checkRange(repository, digest, start, end);
    if (end === start) return;
    const what = end === undefined ? `blob ${digest}` : `bytes ${start}-${end - 1} of blob ${digest}`;
    let at = start;
    let isDone = false;
    let vain = 0;
    while (!isDone) {
      const answer = await this.#session.retry(repository, { capability: 'pull', what }, signal, (endpoint) =>
        this.#open(endpoint, repository, { digest, start: at, end }, what, signal),
      );
      const before = at;
      try {
        for await (const chunk of wantedChunks(answer, at, end)) {
          at += chunk.length;
          yield chunk;
        }
        isDone = end === undefined || at >= end;
      } catch (cause) {
        const error = networkError(cause, repository.host, signal);
        vain = at - before < PROGRESS_BYTES ? vain + 1 : 0;
        if (!error.retryable || at === before || vain >= this.#session.backOff.attempts) throw error;
      } finally {
        if (!answer.body.readableEnded) answer.body.destroy();
      }
      if (!isDone && at === before) throw tooShort(repository, what);
    }
  }

  /** A whole blob, checked when it ends: the last chunk has been handed on by then. */
  async *whole(
    repository: Repository,
    blob: Pick<Descriptor, 'digest' | 'size'>,
    signal: AbortSignal,
  ): AsyncGenerator<Buffer, void, undefined> {
    const hash = createHash('sha256');
    for await (const chunk of this.stream(repository, blob.digest, 0, blob.size, signal)) {
      hash.update(chunk);
      yield chunk;
    }
    if (hash.digest('hex') !== hexOf(blob.digest)) throw mismatch(repository, blob.digest);
  }

  async #read(
    endpoint: Endpoint,
    repository: Repository,
    wanted: Wanted & { readonly end: number },
    what: string,
    signal: AbortSignal,
    onChunk: (chunk: Buffer) => void,
  ): Promise<void> {
    const answer = await this.#open(endpoint, repository, wanted, what, signal);
    let at = wanted.start;
    try {
      for await (const chunk of wantedChunks(answer, at, wanted.end)) {
        at += chunk.length;
        onChunk(chunk);
      }
    } catch (cause) {
      throw networkError(cause, repository.host, signal);
    } finally {
      if (!answer.body.readableEnded) answer.body.destroy();
    }
    if (at < wanted.end) throw tooShort(repository, what);
  }

  /** An answer of 200 or 206 whose body holds what is wanted. */
  async #open(
    endpoint: Endpoint,
    repository: Repository,
    wanted: Wanted,
    what: string,
    signal: AbortSignal,
  ): Promise<Answer> {
    const isWhole = wanted.start === 0 && wanted.end === undefined;
    const headers = isWhole
      ? undefined
      : { range: `bytes=${wanted.start}-${wanted.end === undefined ? '' : wanted.end - 1}` };
    const key = `${endpoint.base} ${repository.path} ${wanted.digest}`;
    const known = this.#targets.get(key);
    if (known !== undefined && known.untilMs > Date.now()) {
      const answer = await this.#session.askTarget(known.url, 'GET', headers, signal);
      if (answer.status < 300 || answer.status === 416 || answer.status === 429 || answer.status >= 500) {
        return await this.#checked(answer, repository, wanted, what);
      }
      // Expired, or the registry has moved it: the registry knows.
      await dropBody(answer);
    }
    this.#targets.delete(key);
    const ask = {
      method: 'GET',
      path: `blobs/${wanted.digest}`,
      capability: 'pull',
      what,
      ...(headers ? { headers } : {}),
    } as const;
    let answer = await this.#session.ask(endpoint, repository, ask, signal);
    for (let hops = 0; answer.status >= 300 && answer.status < 400; hops++) {
      const url = this.#session.redirectTarget(answer, repository, what);
      if (url === undefined || hops >= BLOB_LIMITS.redirects) break;
      await dropBody(answer);
      answer = await this.#session.askTarget(url, 'GET', headers, signal);
      if (answer.status < 300) this.#keep(key, url);
    }
    return await this.#checked(answer, repository, wanted, what);
  }

  async #checked(answer: Answer, repository: Repository, wanted: Wanted, what: string): Promise<Answer> {
    const { host, path } = repository;
    const { status } = answer;
    if (status === 416) {
      await dropBody(answer);
      throw new RegistryError(
        'bad-answer',
        `Cannot get ${what} of ${path} from ${host}: the blob there is shorter (status 416). The index or the manifest does not fit the blob`,
        { host, repository: path, status },
      );
    }
    if (status === 200) return answer;
    if (status !== 206) throw await answerError(answer, repository, what);
    const from = /^bytes (\d+)-/.exec(headerOf(answer, 'content-range') ?? '')?.[1];
    if (from !== undefined && Number(from) !== wanted.start) {
      answer.body.destroy();
      throw new RegistryError(
        'bad-answer',
        `Cannot get ${what} of ${path} from ${host}: it answered with bytes from ${from} on`,
        { host, repository: path, status },
      );
    }
    return answer;
  }

  #keep(key: string, url: URL): void {
    for (const oldest of this.#targets.keys()) {
      if (this.#targets.size < BLOB_LIMITS.targets) break;
      this.#targets.delete(oldest);
    }
    this.#targets.set(key, { url, untilMs: Date.now() + BLOB_LIMITS.targetMs });
  }
}

/** Cuts what is wanted out of a body; a 200 in answer to a range is the whole blob from its first byte. */
async function* wantedChunks(answer: Answer, start: number, end: number | undefined): AsyncGenerator<Buffer> {
  let at = answer.status === 200 ? 0 : start;
  // A body that ends here by its own word is awaited: that keeps its connection usable. Any other is cut, as it may never end.
  const endsHere = Number(headerOf(answer, 'content-length')) === (end ?? 0) - at;
  for await (const chunk of chunksOf(answer)) {
    const from = Math.max(0, start - at);
    const to = end === undefined ? chunk.length : Math.min(chunk.length, end - at);
    at += chunk.length;
    if (from < to) yield from === 0 && to === chunk.length ? chunk : chunk.subarray(from, to);
    if (end !== undefined && at >= end && !endsHere) return;
  }
}

function checkRange(repository: Repository, digest: Digest, start: number, end: number): void {
  if (Number.isSafeInteger(start) && Number.isSafeInteger(end) && start >= 0 && end >= start) return;
  const { host, path } = repository;
  throw new RegistryError('refused', `Cannot read bytes ${start} to ${end} of blob ${digest}: no such range`, {
    host,
    repository: path,
  });
}

function tooShort(repository: Repository, what: string): RegistryError {
  const { host, path } = repository;
  return new RegistryError('unreachable', `${host} ended ${what} of ${path} too early; trying again may help`, {
    host,
    repository: path,
  });
}

export function mismatch(repository: Repository, digest: Digest): RegistryError {
  const { host, path } = repository;
  return new RegistryError(
    'digest-mismatch',
    `Refused ${digest} of ${path} from ${host}: the bytes have another digest. The registry or something before it is broken or lying`,
    { host, repository: path },
  );
}
