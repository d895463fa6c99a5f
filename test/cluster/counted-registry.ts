import { FakeRegistry, sendBlob } from '#shared/registry/fake-registry.ts';
import type { StoredLayer } from './shared-layer.ts';
import type { LayerReference } from './sharing-node.ts';

/** A layer that it has. */
export type CountedLayer = StoredLayer & { readonly blob: Buffer };

/** A registry that counts the bytes of blobs that it gives. `authorization`: what it must be shown for the repository `private`. */
export class CountedRegistry implements AsyncDisposable {
  bytes = 0;
  readonly #bytesOf = new Map<string, number>();
  /** Milliseconds before each answer with a blob's bytes. */
  delayMs = 0;
  readonly #registry: FakeRegistry;

  private constructor(registry: FakeRegistry) {
    this.#registry = registry;
  }

  static async start(layers: readonly CountedLayer[], authorization?: string): Promise<CountedRegistry> {
    const holder: { it?: CountedRegistry } = {};
    const registry = await FakeRegistry.start(() => (request, response) => {
      const [, repository, digest] = /^\/v2\/(\w+)\/blobs\/(sha256:\w+)$/.exec(request.url.pathname) ?? [];
      if (repository === 'private' && request.headers.authorization !== authorization) {
        response.writeHead(401, { 'www-authenticate': 'Basic realm="test"' }).end();
        return;
      }
      const layer = layers.find((one) => one.digest === digest);
      if (layer === undefined) {
        response.writeHead(request.url.pathname === '/v2/' ? 200 : 404).end();
        return;
      }
      if (request.method === 'HEAD') {
        response.writeHead(200, { 'content-length': layer.blob.length }).end();
        return;
      }
      const write = response.end.bind(response);
      response.end = ((body?: Buffer) => {
        if (holder.it !== undefined) holder.it.#count(layer, body?.length ?? 0);
        return write(body);
      }) as typeof response.end;
      setTimeout(() => sendBlob(request, response, layer.blob), holder.it?.delayMs ?? 0);
    });
    holder.it = new CountedRegistry(registry);
    return holder.it;
  }

  get host(): string {
    return this.#registry.host;
  }

  /** What of `bytes` was of one layer. */
  bytesOf(layer: StoredLayer): number {
    return this.#bytesOf.get(layer.digest) ?? 0;
  }

  reference(layer: StoredLayer, repository = 'app'): LayerReference {
    const { digest, sizeBytes, mediaType, annotations } = layer;
    return { image: `${this.host}/${repository}:latest`, digest, sizeBytes, mediaType, annotations };
  }

  #count({ digest }: StoredLayer, bytes: number): void {
    this.bytes += bytes;
    this.#bytesOf.set(digest, (this.#bytesOf.get(digest) ?? 0) + bytes);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#registry[Symbol.asyncDispose]();
  }
}
