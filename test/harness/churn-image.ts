import { createHash, randomBytes } from 'node:crypto';
import { convertImage } from '#shared/convert/convert-image.ts';
import { parseImageConfig } from '#shared/containerd/image-records.ts';
import type { Digest } from '#shared/digest/digest.ts';
import { hostPlatform } from '#shared/registry/platform.ts';
import { parseReference } from '#shared/registry/reference.ts';
import { RegistryClient } from '#shared/registry/registry-client.ts';
import type { LayerRequest } from '#services/snapshotter/snapshots/layer-provider.ts';
import { chainIds } from './chain-id.ts';
import type { TestRegistry } from './registry.ts';
import type { TempFolder } from './temp-folder.ts';
import { tinyImage } from './tiny-image.ts';

const LAYERS = 2;
const FILES_PER_LAYER = 6;
/** Of random bytes: a span or two, and much more than what comes with the table of contents. */
const FILE_BYTES = 640 * 1024;

/** A lazy image that a soak pulls, reads and removes again and again. */
export interface ChurnImage {
  readonly reference: string;
  readonly layers: readonly { readonly request: LayerRequest; readonly chainId: Digest; readonly parent: string }[];
  readonly files: readonly { readonly path: string; readonly sha256: string }[];
}

/** Makes the image and pushes it; `host`: where the node is to have it from. */
export async function pushChurnImage(
  registry: TestRegistry,
  host: string,
  folder: TempFolder,
  signal: AbortSignal,
): Promise<ChurnImage> {
  const files: { path: string; sha256: string }[] = [];
  const layers = Array.from({ length: LAYERS }, (_, layer) =>
    Object.fromEntries(
      Array.from({ length: FILES_PER_LAYER }, (_, file) => {
        const bytes = randomBytes(FILE_BYTES);
        const path = `data-${layer}-${file}`;
        files.push({ path, sha256: createHash('sha256').update(bytes).digest('hex') });
        return [path, bytes];
      }),
    ),
  );
  const layout = await tinyImage(folder.join('churn'), layers, ['/none'], signal);
  const source = parseReference(await registry.push(layout, 'churn', 'plain', signal));
  const client = new RegistryClient();
  try {
    const target = parseReference(registry.reference('churn', 'lazy'));
    await convertImage({ source, target, client, format: 'estargz', platforms: 'all', level: 1 }, signal);
    const { descriptor, parsed } = await client.platformManifest(target, hostPlatform(), signal);
    const config = await client.blob(target.repository, parsed.config, signal);
    const chain = chainIds(parseImageConfig(config, 'churn').diffIds);
    const reference = `${host}/churn:lazy`;
    return {
      reference,
      files,
      layers: parsed.layers.map((layer, i) => {
        const chainId = chain[i];
        if (chainId === undefined) throw new Error('The converted image has fewer diff IDs than layers');
        return {
          chainId,
          parent: chain[i - 1] ?? '',
          request: {
            imageReference: reference,
            layer: layer.digest,
            sizeBytes: layer.size,
            mediaType: layer.mediaType,
            manifest: descriptor.digest,
            annotations: layer.annotations ?? {},
          },
        };
      }),
    };
  } finally {
    await client.close();
  }
}
