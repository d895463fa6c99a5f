import { sha256, type Digest } from '#shared/digest/digest.ts';
import { silentLogger, type Logger } from '#shared/telemetry/logger.ts';
import { type Artifact, ArtifactStore } from './artifact-store.ts';
import { Authenticator } from './authenticator.ts';
import { DEFAULT_BACK_OFF } from './back-off.ts';
import { BlobReader, mismatch } from './blob-reader.ts';
import { BlobWriter } from './blob-writer.ts';
import { anonymous, type CredentialSource } from './credentials.ts';
import { Endpoints } from './endpoints.ts';
import type { Descriptor, Platform } from './manifest.ts';
import { type FetchedImage, type FetchedManifest, ManifestStore } from './manifest-store.ts';
import type { Reference, RepositoryName } from './reference.ts';
import { RegistryError } from './registry-error.ts';
import { answerError, RegistrySession } from './registry-session.ts';
import { dropBody, Transport } from './transport.ts';

export type { Artifact, ArtifactBlob } from './artifact-store.ts';
export type { FetchedImage, FetchedManifest } from './manifest-store.ts';

export interface RegistryClientOptions {
  readonly credentials?: CredentialSource;
  /** `host[:port]` names spoken to in plain HTTP; loopback hosts always are. */
  readonly plainHttpHosts?: readonly string[];
  /** Folder with `<host>/hosts.toml` as containerd reads it. */
  readonly mirrorsDir?: string | undefined;
  /** `host[:port]` names that may be asked at all; undefined = every one. */
  readonly allowHosts?: readonly string[] | undefined;
  readonly logger?: Logger;
  readonly userAgent?: string;
  readonly connectTimeoutMs?: number;
  /** Longest silence of a registry before a request counts as failed. */
  readonly idleTimeoutMs?: number;
  /** How often a safe request is tried in all. */
  readonly attempts?: number;
  /** Wait before the second try; doubled for each further one. */
  readonly firstRetryDelayMs?: number;
}

/** Bytes of what `blob` reads at most unless told otherwise: image configurations. */
const SMALL_BLOB_BYTES = 16 * 1024 * 1024;

/**
 * A client of OCI registries; one per process, so that connections, tokens and redirect targets are shared.
 *
 * Every method rejects with RegistryError (or ImageReferenceError for a name that is none). A `repository` is
 * `host[:port]/path`.
 */
export class RegistryClient {
  readonly #transport: Transport;
  readonly #session: RegistrySession;
  readonly #reader: BlobReader;
  readonly #writer: BlobWriter;
  readonly #manifests: ManifestStore;
  readonly #artifacts: ArtifactStore;

  constructor(options: RegistryClientOptions = {}) {
    const backOff = {
      ...DEFAULT_BACK_OFF,
      attempts: options.attempts ?? DEFAULT_BACK_OFF.attempts,
      firstDelayMs: options.firstRetryDelayMs ?? DEFAULT_BACK_OFF.firstDelayMs,
    };
    this.#transport = new Transport({
      connectTimeoutMs: options.connectTimeoutMs ?? 10_000,
      idleTimeoutMs: options.idleTimeoutMs ?? 30_000,
      userAgent: options.userAgent ?? 'kindling',
    });
    const endpoints = new Endpoints(this.#transport, {
      plainHttpHosts: options.plainHttpHosts ?? [],
      mirrorsDir: options.mirrorsDir,
      allowHosts: options.allowHosts,
    });
    const authenticator = new Authenticator(this.#transport, options.credentials ?? anonymous, backOff);
    this.#session = new RegistrySession(
      this.#transport,
      authenticator,
      endpoints,
      backOff,
      options.logger ?? silentLogger,
    );
    this.#reader = new BlobReader(this.#session);
    this.#writer = new BlobWriter(this.#session);
    this.#manifests = new ManifestStore(this.#session);
    this.#artifacts = new ArtifactStore(this.#session, this.#manifests, this);
  }

  /** Descriptor of what the reference names: one HEAD, or a GET where the registry does not tell the digest. */
  resolve(reference: Reference, signal: AbortSignal): Promise<Descriptor> {
    return this.#manifests.resolve(reference, signal);
  }

  /** A manifest or index, verified against its digest and at most `MANIFEST_LIMITS.bytes`. */
  manifest(reference: Reference, signal: AbortSignal): Promise<FetchedManifest> {
    return this.#manifests.get(reference, signal);
  }

  /** The image manifest for a platform, through an index if there is one; `not-found` when none fits. */
  platformManifest(reference: Reference, platform: Platform, signal: AbortSignal): Promise<FetchedImage> {
    return this.#manifests.forPlatform(reference, platform, signal);
  }

  /** A whole small blob, verified. */
  async blob(
    repository: RepositoryName,
    blob: Pick<Descriptor, 'digest' | 'size'>,
    signal: AbortSignal,
    limits: { readonly maxBytes?: number } = {},
  ): Promise<Buffer> {
    const parsed = this.#session.repository(repository);
    const maxBytes = limits.maxBytes ?? SMALL_BLOB_BYTES;
    if (blob.size > maxBytes) {
      const { host, path } = parsed;
      throw new RegistryError(
        'too-large',
        `Refused blob ${blob.digest} of ${path} on ${host}: ${blob.size} bytes, at most ${maxBytes} here`,
        {
          host,
          repository: path,
        },
      );
    }
    const bytes = await this.#reader.readRange(parsed, blob.digest, 0, blob.size, signal);
    if (sha256(bytes) !== blob.digest) throw mismatch(parsed, blob.digest);
    return bytes;
  }

  /** A whole blob as it comes, resumed where a connection breaks; ends in `digest-mismatch` if the bytes were others. */
  blobStream(
    repository: RepositoryName,
    blob: Pick<Descriptor, 'digest' | 'size'>,
    signal: AbortSignal,
  ): AsyncIterable<Buffer> {
    return this.#reader.whole(this.#session.repository(repository), blob, signal);
  }

  /** Bytes `start` to `end` (exclusive) as they come. NOT verified. */
  blobRange(
    repository: RepositoryName,
    digest: Digest,
    start: number,
    end: number,
    signal: AbortSignal,
  ): AsyncIterable<Buffer> {
    return this.#reader.stream(this.#session.repository(repository), digest, start, end, signal);
  }

  /** The same in one buffer: the cheapest way for ranges of a few MiB. NOT verified. */
  readRange(
    repository: RepositoryName,
    digest: Digest,
    start: number,
    end: number,
    signal: AbortSignal,
  ): Promise<Buffer> {
    return this.#reader.readRange(this.#session.repository(repository), digest, start, end, signal);
  }

  /** The last `bytes` bytes of a blob (all of it where it is smaller). NOT verified. */
  tail(
    repository: RepositoryName,
    blob: Pick<Descriptor, 'digest' | 'size'>,
    bytes: number,
    signal: AbortSignal,
  ): Promise<Buffer> {
    return this.readRange(repository, blob.digest, Math.max(0, blob.size - bytes), blob.size, signal);
  }

  /**
   * Whether the repository has the blob. `authorization` is sent in place of our own credentials (empty: none): so one
   * checks what its owner may read. `unauthorized` when that is refused.
   */
  async blobExists(
    repository: RepositoryName,
    digest: Digest,
    signal: AbortSignal,
    options: { readonly authorization?: string | undefined } = {},
  ): Promise<boolean> {
    const parsed = this.#session.repository(repository);
    const ask = {
      method: 'HEAD',
      path: `blobs/${digest}`,
      capability: 'pull',
      what: `blob ${digest}`,
      ...options,
    } as const;
    return await this.#session.retry(parsed, ask, signal, async (endpoint) => {
      const answer = await this.#session.ask(endpoint, parsed, ask, signal);
      // A redirect means that it is there; the target is of no interest.
      if (answer.status >= 400 && answer.status !== 404) throw await answerError(answer, parsed, ask.what);
      await dropBody(answer);
      if (answer.status === 404 && endpoint.isMirror) throw await answerError(answer, parsed, ask.what);
      return answer.status !== 404;
    });
  }

  /** Makes a blob of another repository of the same host appear in this one; false = upload it. */
  async mountBlob(
    repository: RepositoryName,
    digest: Digest,
    from: RepositoryName,
    signal: AbortSignal,
  ): Promise<boolean> {
    const [target, source] = [this.#session.repository(repository), this.#session.repository(from)];
    if (target.host !== source.host) return false;
    return await this.#writer.mount(target, digest, source, signal);
  }

  /** Uploads unless it is there; `open` is called again for another attempt. Resolves false when it was there. */
  async uploadBlob(
    repository: RepositoryName,
    blob: Pick<Descriptor, 'digest' | 'size'>,
    open: () => AsyncIterable<Uint8Array>,
    signal: AbortSignal,
  ): Promise<boolean> {
    if (await this.blobExists(repository, blob.digest, signal)) return false;
    await this.#writer.upload(this.#session.repository(repository), blob, open, signal);
    return true;
  }

  putManifest(
    repository: RepositoryName,
    tagOrDigest: string,
    bytes: Uint8Array,
    mediaType: string,
    signal: AbortSignal,
  ): Promise<Descriptor> {
    return this.#manifests
      .put(this.#session.repository(repository), tagOrDigest, bytes, mediaType, signal)
      .then((put) => put.descriptor);
  }

  /** Manifests whose subject is `subject`, by the referrers API or the fallback tag `sha256-<hex>`. */
  referrers(
    repository: RepositoryName,
    subject: Digest,
    artifactType: string | undefined,
    signal: AbortSignal,
  ): Promise<readonly Descriptor[]> {
    return this.#artifacts.referrers(this.#session.repository(repository), subject, artifactType, signal);
  }

  putArtifact(repository: RepositoryName, artifact: Artifact, signal: AbortSignal): Promise<Descriptor> {
    return this.#artifacts.put(this.#session.repository(repository), artifact, signal);
  }

  /**
   * Value of the Authorization header that this process pulls the repository with; undefined = anonymously. May ask the
   * registry what it wants, and for a token.
   */
  authorizationOf(repository: RepositoryName, signal: AbortSignal): Promise<string | undefined> {
    return this.#session.authorizationOf(this.#session.repository(repository), signal);
  }

  close(): Promise<void> {
    return this.#transport.close();
  }
}
