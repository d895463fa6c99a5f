import { createServer, request as httpRequest } from 'node:http';
import { copyFile } from 'node:fs/promises';
import { join } from 'node:path';
import { hexOf, isDigest, type Digest } from '#shared/digest/digest.ts';
import type { StoredLayer } from '#test/cluster/shared-layer.ts';
import { TestNode } from '#test/harness/node.ts';
import { startUntilReady } from '#test/harness/readiness.ts';
import type { TestRegistry } from '#test/harness/registry.ts';
import { testImage } from '#test/images/image-cache.ts';
import { MANIFEST_TYPE, type Manifest } from '#test/images/oci-layout.ts';
import { recipeOf } from '#test/images/recipe.ts';
import { lazyImage, type LazyFormat } from './lazy-image.ts';

export interface StartupPart {
  readonly layer: StoredLayer;
  /** The layer's index, encoded. */
  readonly indexFile: string;
  /** Ranges [start, end) of the blob that one real start asked for, in this order. */
  readonly ranges: readonly (readonly [start: number, end: number])[];
}

type Ranges = Map<Digest, (readonly [start: number, end: number])[]>;

/**
 * Starts a container of a test image once, with containerd and a node of its own, and notes which ranges of which layers that
 * takes from the registry: the image's startup set. `folder` gets the layers' indexes.
 */
export async function recordStartup(
  image: { readonly name: string; readonly format: LazyFormat },
  registry: TestRegistry,
  folder: string,
  signal: AbortSignal,
): Promise<readonly StartupPart[]> {
  const { name, format } = image;
  await registry.push(await testImage(name, signal), name, 'original', signal);
  await lazyImage(name, format, registry, signal);
  await using proxy = await RangeRecorder.start(registry.port);
  await using node = await TestNode.start({ KINDLING_BACKGROUND: 'false', KINDLING_TRUSTED_INDEXES: '*' }, signal);
  const reference = `127.0.0.1:${proxy.port}/${name}:${format}`;
  await node.kindling.pull(reference, signal);
  await startUntilReady(node.containerd, reference, recipeOf(name), 'kindling', signal);
  const base = `http://${registry.host}/v2/${name}`;
  const answer = await fetch(`${base}/manifests/${format}`, { headers: { accept: MANIFEST_TYPE }, signal });
  const manifest = (await answer.json()) as Manifest;
  const parts: StartupPart[] = [];
  for (const { digest, size, mediaType, annotations } of manifest.layers) {
    const indexFile = join(folder, `${name}-${hexOf(digest)}`);
    await copyFile(join(node.kindling.dataDir, 'layers', hexOf(digest), 'index'), indexFile);
    const blob = new Uint8Array(await (await fetch(`${base}/blobs/${digest}`, { signal })).arrayBuffer());
    const layer = { digest, sizeBytes: size, mediaType, annotations: annotations ?? {}, blob };
    parts.push({ layer, indexFile, ranges: proxy.ranges.get(digest) ?? [] });
  }
  return parts;
}

/** Passes requests on to a registry and notes the ranges of blobs that are asked for. */
class RangeRecorder implements AsyncDisposable {
  readonly port: number;
  readonly ranges: Ranges;
  readonly #close: () => Promise<void>;

  private constructor(port: number, ranges: Ranges, close: () => Promise<void>) {
    this.port = port;
    this.ranges = ranges;
    this.#close = close;
  }

  static async start(target: number): Promise<RangeRecorder> {
    const ranges: Ranges = new Map();
    const server = createServer((request, response) => {
      const [, digest] = /\/blobs\/(sha256:[0-9a-f]{64})$/.exec(request.url ?? '') ?? [];
      const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '') ?? [];
      if (isDigest(digest) && first !== undefined && last !== undefined) {
        const known = ranges.get(digest) ?? [];
        ranges.set(digest, [...known, [Number(first), Number(last) + 1]]);
      }
      const { method, headers } = request;
      const onward = httpRequest({ host: '127.0.0.1', port: target, method, path: request.url, headers }, (answer) => {
        response.writeHead(answer.statusCode ?? 502, answer.headers);
        answer.pipe(response);
        answer.on('error', () => response.destroy());
      });
      onward.on('error', () => response.destroy());
      response.on('close', () => onward.destroy());
      request.pipe(onward);
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const address = server.address();
    const port = typeof address === 'object' && address !== null ? address.port : 0;
    const close = async (): Promise<void> => {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      server.closeAllConnections();
      await closed;
    };
    return new RangeRecorder(port, ranges, close);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#close();
  }
}
