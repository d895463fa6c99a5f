import { hexOf, sha256, type Digest } from '#shared/digest/digest.ts';
import { type Descriptor, MANIFEST_LIMITS, MEDIA_TYPES } from './manifest.ts';
import type { FetchedManifest, ManifestStore } from './manifest-store.ts';
import { parseManifest } from './manifest.ts';
import type { RepositoryName } from './reference.ts';
import { RegistryError } from './registry-error.ts';
import type { RegistrySession, Repository } from './registry-session.ts';
import { readBody } from './transport.ts';

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

/** What uploads an artifact's blobs. */
export interface BlobUploader {
  uploadBlob(
    repository: RepositoryName,
    blob: Pick<Descriptor, 'digest' | 'size'>,
    open: () => AsyncIterable<Uint8Array>,
    signal: AbortSignal,
  ): Promise<boolean>;
}

const EMPTY = Buffer.from('{}');

/**
 * Artifacts that refer to a manifest, as the distribution specification 1.1 has them. Where a registry does not know
 * subjects, the index under the tag `sha256-<hex>` is kept by us; two writers at the same time may lose one entry there.
 */
export class ArtifactStore {
  readonly #session: RegistrySession;
  readonly #manifests: ManifestStore;
  readonly #uploader: BlobUploader;

  constructor(session: RegistrySession, manifests: ManifestStore, uploader: BlobUploader) {
    this.#session = session;
    this.#manifests = manifests;
    this.#uploader = uploader;
  }

  async referrers(
    repository: Repository,
    subject: Digest,
    artifactType: string | undefined,
    signal: AbortSignal,
  ): Promise<readonly Descriptor[]> {
    const all =
      (await this.#byApi(repository, subject, artifactType, signal)) ??
      (await this.#byTag(repository, subject, signal));
    // A registry may ignore the filter.
    return artifactType === undefined ? all : all.filter((entry) => entry.artifactType === artifactType);
  }

  async put(repository: Repository, artifact: Artifact, signal: AbortSignal): Promise<Descriptor> {
    const layers: Descriptor[] = [];
    for (const blob of [
      { mediaType: MEDIA_TYPES.ociEmpty, bytes: EMPTY },
      ...artifact.blobs,
    ] as readonly ArtifactBlob[]) {
      const descriptor = { digest: sha256(blob.bytes), size: blob.bytes.length };
      await this.#uploader.uploadBlob(repository.name, descriptor, () => once(blob.bytes), signal);
      layers.push({
        mediaType: blob.mediaType,
        ...descriptor,
        ...(blob.annotations === undefined ? {} : { annotations: blob.annotations }),
      });
    }
    const [config, ...rest] = layers;
    const { mediaType, digest, size } = artifact.subject;
    const document = {
      schemaVersion: 2,
      mediaType: MEDIA_TYPES.ociManifest,
      artifactType: artifact.artifactType,
      config,
      layers: rest.length === 0 ? [config] : rest,
      subject: { mediaType, digest, size },
      ...(artifact.annotations === undefined ? {} : { annotations: artifact.annotations }),
    };
    const bytes = Buffer.from(JSON.stringify(document));
    const put = await this.#manifests.put(repository, sha256(bytes), bytes, MEDIA_TYPES.ociManifest, signal);
    const descriptor: Descriptor = {
      ...put.descriptor,
      artifactType: artifact.artifactType,
      ...(artifact.annotations === undefined ? {} : { annotations: artifact.annotations }),
    };
    if (!put.hasSubject) await this.#addToTag(repository, digest, descriptor, signal);
    return descriptor;
  }

  /** undefined = the registry has no referrers API. */
  async #byApi(
    repository: Repository,
    subject: Digest,
    artifactType: string | undefined,
    signal: AbortSignal,
  ): Promise<readonly Descriptor[] | undefined> {
    const filter = artifactType === undefined ? '' : `?artifactType=${encodeURIComponent(artifactType)}`;
    const what = `referrers of ${subject}`;
    const ask = { method: 'GET', path: `referrers/${subject}${filter}`, capability: 'pull', what } as const;
    try {
      return await this.#session.send(
        repository,
        { ...ask, headers: { accept: MEDIA_TYPES.ociIndex } },
        async (answer) => {
          const bytes = await readBody(answer, MANIFEST_LIMITS.bytes, what, signal);
          const parsed = parseManifest(bytes, MEDIA_TYPES.ociIndex, `${what} in ${repository.name}`);
          return parsed.kind === 'index' ? parsed.manifests : undefined;
        },
        signal,
      );
    } catch (cause) {
      // 404 by the specification; others answer 400 or 405, or a page that is no index.
      if (cause instanceof RegistryError && cause.code !== 'not-found' && cause.code !== 'bad-answer') throw cause;
      if (cause instanceof RegistryError || (cause instanceof Error && cause.name === 'ManifestError'))
        return undefined;
      throw cause;
    }
  }

  async #byTag(repository: Repository, subject: Digest, signal: AbortSignal): Promise<readonly Descriptor[]> {
    const found = await this.#tagIndex(repository, subject, signal);
    return found?.parsed.kind === 'index' ? found.parsed.manifests : [];
  }

  async #tagIndex(repository: Repository, subject: Digest, signal: AbortSignal): Promise<FetchedManifest | undefined> {
    const { host, path, name } = repository;
    try {
      return await this.#manifests.get(
        { host, path, repository: name, tag: fallbackTag(subject), digest: undefined },
        signal,
      );
    } catch (cause) {
      if (cause instanceof RegistryError && cause.code === 'not-found') return undefined;
      throw cause;
    }
  }

  async #addToTag(repository: Repository, subject: Digest, entry: Descriptor, signal: AbortSignal): Promise<void> {
    const existing = await this.#byTag(repository, subject, signal);
    const others = existing.filter((other) => other.digest !== entry.digest);
    const index = { schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests: [...others, entry] };
    const bytes = Buffer.from(JSON.stringify(index));
    await this.#manifests.put(repository, fallbackTag(subject), bytes, MEDIA_TYPES.ociIndex, signal);
  }
}

/** Distribution specification 1.1, "Referrers Tag Schema". */
function fallbackTag(subject: Digest): string {
  return `sha256-${hexOf(subject)}`;
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}
