import type { Digest } from '#shared/digest/digest.ts';
import type { AllowedRepositories } from '#shared/registry/allowed-repositories.ts';
import type { Descriptor } from '#shared/registry/manifest.ts';
import type { IndexRequest } from './index-source.ts';

/** A blob for each layer of an image that has one. */
export type LayerBlobs = ReadonlyMap<string, Descriptor>;

/** Images that are remembered, and for how long: all layers of an image ask within moments. */
const REMEMBERED = 256;
const REMEMBERED_MS = 60_000;

type Look = (repository: string, manifest: Digest, signal: AbortSignal) => Promise<LayerBlobs>;

/**
 * What lies beside images for their layers, in the repositories that the operator trusts: layers are shared by digest over all images, so
 * whoever can push there could redefine a layer that other images use. Remembered for a moment.
 */
export class TrustedBlobs {
  readonly #look: Look;
  readonly #trusted: AllowedRepositories;
  readonly #now: () => number;
  readonly #known = new Map<string, { readonly at: number; readonly blobs: Promise<LayerBlobs> }>();

  constructor(look: Look, trusted: AllowedRepositories, now: () => number = Date.now) {
    this.#look = look;
    this.#trusted = trusted;
    this.#now = now;
  }

  /** undefined where there is none, or nothing there is believed. @throws RegistryError */
  async find({ repository, manifest, layer }: IndexRequest): Promise<Descriptor | undefined> {
    if (manifest === undefined || !this.#trusted.allows(repository)) return undefined;
    return (await this.#beside(repository, manifest)).get(layer);
  }

  forget(repository: string, manifest: Digest): void {
    this.#known.delete(keyOf(repository, manifest));
  }

  #beside(repository: string, manifest: Digest): Promise<LayerBlobs> {
    const key = keyOf(repository, manifest);
    const known = this.#known.get(key);
    if (known && this.#now() - known.at < REMEMBERED_MS) return known.blobs;
    // Shared by all who wait: nobody's own signal may end it. The client's bounds do.
    const blobs = this.#look(repository, manifest, new AbortController().signal);
    blobs.catch(() => this.#known.delete(key));
    for (const oldest of this.#known.keys()) {
      if (this.#known.size < REMEMBERED) break;
      this.#known.delete(oldest);
    }
    this.#known.delete(key);
    this.#known.set(key, { at: this.#now(), blobs });
    return blobs;
  }
}

function keyOf(repository: string, manifest: Digest): string {
  return `${repository}@${manifest}`;
}
