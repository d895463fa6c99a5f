import { fileURLToPath } from 'node:url';
import { convertImage } from '#shared/convert/convert-image.ts';
import { parseReference } from '#shared/registry/reference.ts';
import { RegistryClient } from '#shared/registry/registry-client.ts';
import type { TestRegistry } from '#test/harness/registry.ts';
import { COMPRESSIONS, type Compression } from './compression.ts';
import { OciLayout } from './oci-layout.ts';
import type { RemoteVariant } from './remote-converter.ts';
import { runTool } from './tool.ts';

const CLI = fileURLToPath(new URL('../../services/cli/main.ts', import.meta.url));

/** Written anew by us. */
const OUR_FORMATS = ['estargz', 'zstd-chunked'] as const;
export type OurFormat = (typeof OUR_FORMATS)[number];

/** Every form of one image: as pushed, converted by us, converted by others. */
export const IMAGE_FORMS = [
  ...COMPRESSIONS,
  ...OUR_FORMATS,
  'ctr-remote-estargz',
  'ctr-remote-zstd-chunked',
  'skopeo-zstd-chunked',
] as const;
export type ImageForm = (typeof IMAGE_FORMS)[number];

export interface FormSource {
  /** Of its repository. */
  readonly name: string;
  readonly layout: (variant: Compression | RemoteVariant) => Promise<OciLayout>;
}

/** Such layers have no table of contents: an index makes them lazy. */
export function isAsPushed(form: ImageForm): form is Compression {
  return (COMPRESSIONS as readonly string[]).includes(form);
}

export function isOurs(form: ImageForm): form is OurFormat {
  return (OUR_FORMATS as readonly string[]).includes(form);
}

/**
 * Puts an image into the registry in one form, under a tag of that name, and returns its reference. `folder`: for what has to be
 * written on the way.
 *
 * @throws Error also where the other producer cannot make it
 */
export async function pushForm(
  source: FormSource,
  form: ImageForm,
  registry: TestRegistry,
  folder: string,
  signal: AbortSignal,
): Promise<string> {
  if (isOurs(form)) {
    const original = await registry.push(await source.layout('gzip-6'), source.name, 'original', signal);
    return await convertByUs(original, registry.reference(source.name, form), form, signal);
  }
  const layout =
    form === 'skopeo-zstd-chunked'
      ? await convertBySkopeo(await source.layout('gzip-6'), `${folder}/${source.name}-${form}`, signal)
      : await source.layout(form);
  return await registry.push(layout, source.name, form, signal);
}

export async function convertByUs(
  source: string,
  target: string,
  format: OurFormat,
  signal: AbortSignal,
): Promise<string> {
  const client = new RegistryClient();
  try {
    await convertImage(
      { source: parseReference(source), target: parseReference(target), client, format, platforms: 'all' },
      signal,
    );
  } finally {
    await client.close();
  }
  return target;
}

/** `folder` must not exist. */
async function convertBySkopeo(source: OciLayout, folder: string, signal: AbortSignal): Promise<OciLayout> {
  const copy = ['--insecure-policy', 'copy', '--quiet', '--dest-compress-format', 'zstd:chunked'];
  await runTool('skopeo', [...copy, `oci:${source.folder}:latest`, `oci:${folder}:latest`], signal);
  return new OciLayout(folder);
}

/** Builds the indexes of an image and pushes them beside it: nodes with KINDLING_TRUSTED_INDEXES find them there. */
export async function indexBeside(reference: string, signal: AbortSignal): Promise<void> {
  await runTool(
    process.execPath,
    ['--disable-warning=ExperimentalWarning', CLI, 'index', reference, '--push', '--json'],
    signal,
  );
}
