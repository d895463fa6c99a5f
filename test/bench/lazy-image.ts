import { fileURLToPath } from 'node:url';
import { convertImage } from '#shared/convert/convert-image.ts';
import { parseReference } from '#shared/registry/reference.ts';
import { RegistryClient } from '#shared/registry/registry-client.ts';
import type { TestRegistry } from '#test/harness/registry.ts';
import { testImage } from '#test/images/image-cache.ts';
import { runTool } from '#test/images/tool.ts';

const CLI = fileURLToPath(new URL('../../services/cli/main.ts', import.meta.url));

/** Forms in which Kindling starts an image; each is pushed under a tag of this name. */
export const LAZY_FORMATS = [
  /** eStargz with priorities, by `ctr-remote image optimize`. */
  'optimized',
  /** eStargz without priorities, by us. */
  'estargz',
  /** By us. */
  'zstd-chunked',
  /** As pushed, with no index anywhere: the node streams each layer once. */
  'gzip',
  /** As pushed, with its indexes beside it in the registry (`kindling index --push`). */
  'gzip-indexed',
  'zstd',
] as const;
export type LazyFormat = (typeof LAZY_FORMATS)[number];

/** Pushes the test image `name`, whose original must be there as `name:original`, in the form `format`. */
export async function lazyImage(
  name: string,
  format: LazyFormat,
  registry: TestRegistry,
  signal: AbortSignal,
): Promise<string> {
  if (format === 'optimized') {
    return await registry.push(await testImage(name, signal, 'ctr-remote-optimized'), name, format, signal);
  }
  if (format === 'gzip-indexed') {
    const image = await registry.push(await testImage(name, signal, 'gzip-6'), name, format, signal);
    await runTool(
      process.execPath,
      ['--disable-warning=ExperimentalWarning', CLI, 'index', image, '--push', '--json'],
      signal,
    );
    return image;
  }
  if (format === 'gzip' || format === 'zstd') {
    const layout = await testImage(name, signal, format === 'gzip' ? 'gzip-6' : 'zstd');
    return await registry.push(layout, name, format, signal);
  }
  const target = registry.reference(name, format);
  const client = new RegistryClient();
  try {
    await convertImage(
      {
        source: parseReference(registry.reference(name, 'original')),
        target: parseReference(target),
        client,
        format,
        platforms: 'all',
      },
      signal,
    );
  } finally {
    await client.close();
  }
  return target;
}
