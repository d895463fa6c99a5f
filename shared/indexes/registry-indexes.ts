import type { Digest } from '#shared/digest/digest.ts';
import { INDEX_VERSION } from '#shared/layer/index-codec.ts';
import type { AllowedRepositories } from '#shared/registry/allowed-repositories.ts';
import type { Descriptor } from '#shared/registry/manifest.ts';
import type { RegistryClient } from '#shared/registry/registry-client.ts';
import { referenceTo } from '#shared/registry/reference.ts';
import type { IndexRequest, IndexSource } from './index-source.ts';
import { TrustedBlobs, type LayerBlobs } from './trusted-blobs.ts';

/** Type of the artifact that refers to an image manifest, and of each of its blobs: one encoded index per layer. */
export const INDEX_ARTIFACT_TYPE = `application/vnd.kindling.layer-index.v${INDEX_VERSION}`;
/** On each blob: the digest of the layer it describes. */
export const LAYER_ANNOTATION = 'io.kindling.layer';

const LIMITS = {
  /** Artifacts of one image that are looked into; more than a few is somebody's mistake or malice. */
  artifacts: 4,
  /** Bytes of one index. */
  indexBytes: 256 * 1024 * 1024,
} as const;

type Client = Pick<RegistryClient, 'referrers' | 'manifest' | 'blob' | 'putArtifact'>;

/** Layer indexes beside the image in its registry: they outlive the cluster and travel with a mirror. */
export class RegistryIndexes implements IndexSource {
  readonly #client: Client;
  readonly #found: TrustedBlobs;

  constructor(client: Client, trusted: AllowedRepositories, now?: () => number) {
    this.#client = client;
    this.#found = new TrustedBlobs((...image) => this.#look(...image), trusted, now);
  }

  async find(request: IndexRequest, signal: AbortSignal): Promise<Uint8Array | undefined> {
    const blob = await this.#found.find(request);
    if (blob === undefined) return undefined;
    return await this.#client.blob(request.repository, blob, signal, { maxBytes: LIMITS.indexBytes });
  }

  /** @returns whether it was not there yet. */
  async publish(
    repository: string,
    subject: Descriptor,
    indexes: readonly { readonly layer: Digest; readonly bytes: Uint8Array }[],
    signal: AbortSignal,
  ): Promise<boolean> {
    const there = await this.#look(repository, subject.digest, signal);
    if (indexes.every(({ layer }) => there.has(layer))) return false;
    await this.#client.putArtifact(
      repository,
      {
        artifactType: INDEX_ARTIFACT_TYPE,
        subject,
        blobs: indexes.map(({ layer, bytes }) => ({
          mediaType: INDEX_ARTIFACT_TYPE,
          bytes,
          annotations: { [LAYER_ANNOTATION]: layer },
        })),
      },
      signal,
    );
    this.#found.forget(repository, subject.digest);
    return true;
  }

  async #look(repository: string, subject: Digest, signal: AbortSignal): Promise<LayerBlobs> {
    const found = new Map<string, Descriptor>();
    const artifacts = await this.#client.referrers(repository, subject, INDEX_ARTIFACT_TYPE, signal);
    // The newest stand last; a later one replaces.
    for (const { digest } of artifacts.slice(-LIMITS.artifacts)) {
      const { parsed } = await this.#client.manifest(referenceTo(repository, digest), signal);
      if (parsed.kind !== 'image' || parsed.artifactType !== INDEX_ARTIFACT_TYPE || parsed.subject?.digest !== subject)
        continue;
      for (const blob of parsed.layers) {
        const layer = blob.annotations?.[LAYER_ANNOTATION];
        if (layer !== undefined && blob.mediaType === INDEX_ARTIFACT_TYPE) found.set(layer, blob);
      }
    }
    return found;
  }
}
