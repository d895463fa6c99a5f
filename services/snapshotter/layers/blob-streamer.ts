import type { RegistryClient } from '#shared/registry/registry-client.ts';
import { NotLazyError } from '../snapshots/layer-provider.ts';
import type { StreamBuilder } from './layer-builder.ts';
import type { BuiltLayer } from './worker-job.ts';

/** Makes a layer from one pass over its blob. */
export class BlobStreamer implements StreamBuilder {
  readonly #registry: Pick<RegistryClient, 'blobStream'>;

  constructor(options: { readonly registry: Pick<RegistryClient, 'blobStream'> }) {
    this.#registry = options.registry;
  }

  build(source: { readonly repository: string; readonly layer: string }): Promise<BuiltLayer> {
    void this.#registry;
    return Promise.reject(
      new NotLazyError('no-index', `Cannot provide ${source.layer} lazily: it has neither an index nor a TOC`),
    );
  }
}
