import { type Digest, isDigest } from '#shared/digest/digest.ts';
import { GZIP_HEAD_BYTES } from '#shared/formats/soci/index-from-ztoc.ts';
import type { AllowedRepositories } from '#shared/registry/allowed-repositories.ts';
import type { Descriptor } from '#shared/registry/manifest.ts';
import { referenceTo } from '#shared/registry/reference.ts';
import type { RegistryClient } from '#shared/registry/registry-client.ts';
import type { IndexRequest } from './index-source.ts';
import { TrustedBlobs, type LayerBlobs } from './trusted-blobs.ts';

/** Type of the configuration of a SOCI index manifest: version 1 refers to the image, version 2 is referred to by it. */
export const SOCI_V1 = 'application/vnd.amazon.soci.index.v1+json';
export const SOCI_V2 = 'application/vnd.amazon.soci.index.v2+json';
/** On the image's manifest: the digest of its SOCI index (version 2). */
export const SOCI_INDEX_ANNOTATION = 'com.amazon.soci.index-digest';
/** On each zTOC in a SOCI index: the digest of the layer it describes. */
export const SOCI_LAYER_ANNOTATION = 'com.amazon.soci.image-layer-digest';
export const ZTOC_TYPE = 'application/octet-stream';

/** SOCI indexes of one image that are looked into. */
const MAX_INDEXES = 4;
/** Of one zTOC: 32 KiB for each 4 MiB of the layer, and some 200 bytes an entry. */
const MAX_ZTOC_BYTES = 256 * 1024 * 1024;

type Client = Pick<RegistryClient, 'referrers' | 'manifest' | 'blob' | 'readRange'>;

export interface FoundZtoc {
  /** As its digest in the SOCI index says; what it says of the layer nobody has checked. */
  readonly ztoc: Buffer;
  /** The first bytes of the layer's blob, NOT verified. */
  readonly head: Buffer;
}

/** Where a layer's zTOC may be found. */
export interface ZtocSource {
  find(request: IndexRequest, signal: AbortSignal): Promise<FoundZtoc | undefined>;
}

/** SOCI indexes beside images in their registry. That a manifest names its own by digest (version 2) binds it to that image only. */
export class SociIndexes implements ZtocSource {
  readonly #client: Client;
  readonly #found: TrustedBlobs;

  constructor(client: Client, trusted: AllowedRepositories, now?: () => number) {
    this.#client = client;
    this.#found = new TrustedBlobs((...image) => this.#look(...image), trusted, now);
  }

  /** @throws RegistryError */
  async find(request: IndexRequest, signal: AbortSignal): Promise<FoundZtoc | undefined> {
    const { repository, layer, sizeBytes } = request;
    if (sizeBytes === undefined) return undefined;
    const blob = await this.#found.find(request);
    if (blob === undefined) return undefined;
    const [ztoc, head] = await Promise.all([
      this.#client.blob(repository, blob, signal, { maxBytes: MAX_ZTOC_BYTES }),
      this.#client.readRange(repository, layer, 0, Math.min(GZIP_HEAD_BYTES, sizeBytes), signal),
    ]);
    return { ztoc, head };
  }

  /** What the image itself names counts before what refers to it. */
  async #look(repository: string, manifest: Digest, signal: AbortSignal): Promise<LayerBlobs> {
    const found = new Map<string, Descriptor>();
    const [image, referrers] = await Promise.all([
      this.#client.manifest(referenceTo(repository, manifest), signal),
      this.#client.referrers(repository, manifest, SOCI_V1, signal),
    ]);
    // The newest stand last; a later one replaces.
    for (const { digest } of referrers.slice(-MAX_INDEXES)) {
      const { parsed } = await this.#client.manifest(referenceTo(repository, digest), signal);
      if (parsed.kind !== 'image' || parsed.config.mediaType !== SOCI_V1 || parsed.subject?.digest !== manifest)
        continue;
      collect(parsed.layers, found);
    }
    const named = image.parsed.annotations[SOCI_INDEX_ANNOTATION];
    if (isDigest(named)) {
      const { parsed } = await this.#client.manifest(referenceTo(repository, named), signal);
      if (parsed.kind === 'image' && parsed.config.mediaType === SOCI_V2) collect(parsed.layers, found);
    }
    return found;
  }
}

function collect(blobs: readonly Descriptor[], found: Map<string, Descriptor>): void {
  for (const blob of blobs) {
    const layer = blob.annotations?.[SOCI_LAYER_ANNOTATION];
    if (layer !== undefined && blob.mediaType === ZTOC_TYPE) found.set(layer, blob);
  }
}
