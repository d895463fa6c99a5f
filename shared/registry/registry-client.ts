import type { Logger } from '#shared/telemetry/logger.ts';
import type { Digest } from '#shared/digest/digest.ts';
import type { CredentialSource } from './credentials.ts';
import type { Descriptor, ImageManifest, Manifest, Platform } from './manifest.ts';
import type { Reference, RepositoryName } from './reference.ts';

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
}

/** A manifest as it is on the registry: `bytes` match `descriptor.digest`. */
export interface FetchedManifest {
  readonly descriptor: Descriptor;
  readonly bytes: Buffer;
  readonly parsed: Manifest;
}

export interface FetchedImage extends FetchedManifest {
  readonly parsed: ImageManifest;
  /** The index it was chosen from, where the reference names one. */
  readonly index: FetchedManifest | undefined;
}

export interface ArtifactBlob {
  readonly mediaType: string;
  readonly bytes: Uint8Array;
  readonly annotations?: Readonly<Record<string, string>>;
}

/** An OCI artifact that belongs to `subject` (found again with `referrers`). */
export interface Artifact {
  readonly artifactType: string;
  readonly subject: Descriptor;
  readonly blobs: readonly ArtifactBlob[];
  readonly annotations?: Readonly<Record<string, string>>;
}

/**
 * A client of OCI registries; one per process, so that connections, tokens and redirect targets are shared.
 *
 * Every method rejects with RegistryError (or ReferenceError for a name that is none). A `repository` is `host[:port]/path`.
 */
export class RegistryClient {
  constructor(_options: RegistryClientOptions = {}) {}

  /** Descriptor of what the reference names: one HEAD (or GET where the registry does not tell the digest). */
  resolve(_reference: Reference, _signal: AbortSignal): Promise<Descriptor> {
    return notYet();
  }
  /** A manifest or index, verified against its digest and at most `MANIFEST_LIMITS.bytes`. */
  manifest(_reference: Reference, _signal: AbortSignal): Promise<FetchedManifest> {
    return notYet();
  }
  /** The image manifest for a platform, through an index if there is one; `not-found` when none fits. */
  platformManifest(_reference: Reference, _platform: Platform, _signal: AbortSignal): Promise<FetchedImage> {
    return notYet();
  }
  /** A whole small blob, verified. */
  blob(
    _repository: RepositoryName,
    _blob: Pick<Descriptor, 'digest' | 'size'>,
    _signal: AbortSignal,
    _limits?: { readonly maxBytes?: number },
  ): Promise<Buffer> {
    return notYet();
  }
  /** A whole blob as it comes, resumed where a connection breaks; ends in `digest-mismatch` if the bytes were others. */
  blobStream(
    _repository: RepositoryName,
    _blob: Pick<Descriptor, 'digest' | 'size'>,
    _signal: AbortSignal,
  ): AsyncIterable<Buffer> {
    return notYetStream();
  }
  /** Bytes `start` to `end` (exclusive) as they come. NOT verified. */
  blobRange(
    _repository: RepositoryName,
    _digest: Digest,
    _start: number,
    _end: number,
    _signal: AbortSignal,
  ): AsyncIterable<Buffer> {
    return notYetStream();
  }
  /** The same in one buffer: the cheapest way for ranges of a few MiB. NOT verified. */
  readRange(
    _repository: RepositoryName,
    _digest: Digest,
    _start: number,
    _end: number,
    _signal: AbortSignal,
  ): Promise<Buffer> {
    return notYet();
  }
  /** The last `bytes` bytes of a blob (all of it where it is smaller). NOT verified. */
  tail(
    _repository: RepositoryName,
    _blob: Pick<Descriptor, 'digest' | 'size'>,
    _bytes: number,
    _signal: AbortSignal,
  ): Promise<Buffer> {
    return notYet();
  }
  /** `authorization` is sent in place of our own credentials: so one checks what its owner may read. */
  blobExists(
    _repository: RepositoryName,
    _digest: Digest,
    _signal: AbortSignal,
    _options?: { readonly authorization?: string | undefined },
  ): Promise<boolean> {
    return notYet();
  }
  /** Makes a blob of another repository of the same host appear in this one; false = upload it. */
  mountBlob(
    _repository: RepositoryName,
    _digest: Digest,
    _from: RepositoryName,
    _signal: AbortSignal,
  ): Promise<boolean> {
    return notYet();
  }
  /** Uploads unless it is there; `open` is called again for another attempt. Resolves false when it was there. */
  uploadBlob(
    _repository: RepositoryName,
    _blob: Pick<Descriptor, 'digest' | 'size'>,
    _open: () => AsyncIterable<Uint8Array>,
    _signal: AbortSignal,
  ): Promise<boolean> {
    return notYet();
  }
  putManifest(
    _repository: RepositoryName,
    _tagOrDigest: string,
    _bytes: Uint8Array,
    _mediaType: string,
    _signal: AbortSignal,
  ): Promise<Descriptor> {
    return notYet();
  }
  /** Manifests whose subject is `subject`, by the referrers API or the fallback tag `sha256-<hex>`. */
  referrers(
    _repository: RepositoryName,
    _subject: Digest,
    _artifactType: string | undefined,
    _signal: AbortSignal,
  ): Promise<readonly Descriptor[]> {
    return notYet();
  }
  putArtifact(_repository: RepositoryName, _artifact: Artifact, _signal: AbortSignal): Promise<Descriptor> {
    return notYet();
  }
  /** Value of the Authorization header that this process pulls the repository with; undefined = anonymously. */
  authorizationOf(_repository: RepositoryName, _signal: AbortSignal): Promise<string | undefined> {
    return notYet();
  }
  close(): Promise<void> {
    return Promise.resolve();
  }
}

function notYet(): Promise<never> {
  return Promise.reject(new Error('not there yet'));
}
async function* notYetStream(): AsyncGenerator<Buffer> {
  await notYet();
  yield Buffer.alloc(0);
}
