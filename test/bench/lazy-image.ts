import type { TestRegistry } from '#test/harness/registry.ts';
import { testImage } from '#test/images/image-cache.ts';
import { convertByUs, indexBeside } from '#test/images/image-forms.ts';

/** Forms in which Kindling starts an image; each is pushed under a tag of this name. */
const LAZY_FORMATS = [
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
  /** One zstd frame for each layer, as pushed, with no index anywhere. */
  'zstd',
  'zstd-indexed',
] as const;
export type LazyFormat = (typeof LAZY_FORMATS)[number];

/** @throws Error that lists what there is */
export function lazyFormat(name: string): LazyFormat {
  const format = LAZY_FORMATS.find((each) => each === name);
  if (format === undefined) throw new Error(`${name} is none of the formats ${LAZY_FORMATS.join(', ')}`);
  return format;
}

/** Pushes the test image `name`, whose original must be there as `name:original`, in the form `format`. */
export async function lazyImage(
  name: string,
  format: LazyFormat,
  registry: TestRegistry,
  signal: AbortSignal,
): Promise<string> {
  switch (format) {
    case 'optimized':
      return await registry.push(await testImage(name, signal, 'ctr-remote-optimized'), name, format, signal);
    case 'gzip':
      return await registry.push(await testImage(name, signal, 'gzip-6'), name, format, signal);
    case 'gzip-indexed': {
      const image = await registry.push(await testImage(name, signal, 'gzip-6'), name, format, signal);
      await indexBeside(image, signal);
      return image;
    }
    case 'zstd':
      return await registry.push(await testImage(name, signal, 'zstd'), name, format, signal);
    case 'zstd-indexed': {
      const image = await registry.push(await testImage(name, signal, 'zstd'), name, format, signal);
      await indexBeside(image, signal);
      return image;
    }
    default:
      return await convertByUs(registry.reference(name, 'original'), registry.reference(name, format), format, signal);
  }
}
