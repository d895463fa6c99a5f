import { sha256, type Digest } from '#shared/digest/digest.ts';
import { RegistryClient } from '#shared/registry/registry-client.ts';
import type { TestRegistry } from '#test/harness/registry.ts';

/** A manifest or an index. */
export type Document = Readonly<Record<string, unknown>> & { readonly mediaType: string };

export interface Pushed {
  readonly digest: Digest;
  readonly size: number;
}

/** Pushes blobs and documents of any kind into one repository, byte for byte. */
export class RawPusher implements AsyncDisposable {
  readonly #registry: TestRegistry;
  readonly #name: string;
  readonly #client = new RegistryClient();

  constructor(registry: TestRegistry, name: string) {
    this.#registry = registry;
    this.#name = name;
  }

  async blob(bytes: Buffer, signal: AbortSignal): Promise<Pushed> {
    const blob = { digest: sha256(bytes), size: bytes.length };
    await this.#client.uploadBlob(`${this.#registry.host}/${this.#name}`, blob, () => once(bytes), signal);
    return blob;
  }

  /** @param tag undefined: under its digest alone */
  async document(document: Document, tag: string | undefined, signal: AbortSignal): Promise<Pushed> {
    const bytes = Buffer.from(JSON.stringify(document));
    const digest = sha256(bytes);
    const answer = await fetch(`http://${this.#registry.host}/v2/${this.#name}/manifests/${tag ?? digest}`, {
      method: 'PUT',
      headers: { 'content-type': document.mediaType },
      body: new Uint8Array(bytes),
      signal,
    });
    if (!answer.ok) {
      throw new Error(`Cannot put ${this.#name}:${tag ?? digest}: ${answer.status} ${await answer.text()}`);
    }
    await answer.body?.cancel();
    return { digest, size: bytes.length };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#client.close();
  }
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}
