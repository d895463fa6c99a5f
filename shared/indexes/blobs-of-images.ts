import type { Digest } from '#shared/digest/digest.ts';
import type { Descriptor } from '#shared/registry/manifest.ts';

/** A blob for each layer of an image that has one. */
export type LayerBlobs = ReadonlyMap<string, Descriptor>;

/** Images that are remembered, and for how long: all layers of an image ask within moments. */
const REMEMBERED = 256;
const REMEMBERED_MS = 60_000;

/** What was found beside images, remembered for a moment. */
export class BlobsOfImages {
  readonly #look: (repository: string, manifest: Digest, signal: AbortSignal) => Promise<LayerBlobs>;
  readonly #now: () => number;
  readonly #known = new Map<string, { readonly at: number; readonly blobs: Promise<LayerBlobs> }>();

  constructor(
    look: (repository: string, manifest: Digest, signal: AbortSignal) => Promise<LayerBlobs>,
    now: () => number = Date.now,
  ) {
    this.#look = look;
    this.#now = now;
  }

  get(repository: string, manifest: Digest): Promise<LayerBlobs> {
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

  forget(repository: string, manifest: Digest): void {
    this.#known.delete(keyOf(repository, manifest));
  }
}

function keyOf(repository: string, manifest: Digest): string {
  return `${repository}@${manifest}`;
}
