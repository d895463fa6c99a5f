import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { chmod, mkdir, mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { COMPRESSIONS, compressLayer, type Compression } from './compression.ts';
import { BASE_SCRIPT, PACKAGES_SCRIPT, TAR_SCRIPT } from './layer-script.ts';
import { OciLayout, digestOfFile, writeOciLayout, type LayerFile } from './oci-layout.ts';
import { recipeOf, type Recipe } from './recipe.ts';
import { REMOTE_VARIANTS, convertByCtrRemote, type RemoteVariant } from './remote-converter.ts';
import { runTool } from './tool.ts';

/** Change it to make every image anew, for example after changing a script. */
const BUILD_VERSION = 1;
const BUILD_TIMEOUT_MS = 1_200_000;

/** Test images live here between runs: layouts, and the base, tars and packages that they are made of. */
export function imageCache(): string {
  return process.env['TEST_IMAGE_CACHE'] ?? '/var/cache/kindling/test-images';
}

/**
 * The image `name` in the form of `variant`, built when the cache has none: then this takes from seconds to
 * minutes, needs root and Debian's mirror, and one build at a time runs on the machine.
 */
export async function testImage(name: string, signal: AbortSignal, variant: Variant = 'gzip-6'): Promise<OciLayout> {
  const folder = layoutFolder(recipeOf(name), variant);
  if (!existsSync(folder)) {
    await runTool(
      process.execPath,
      ['--disable-warning=ExperimentalWarning', MAIN, name, variant],
      AbortSignal.any([signal, AbortSignal.timeout(BUILD_TIMEOUT_MS)]),
    );
  }
  return new OciLayout(folder);
}

/** How the layers of a test image are compressed, or which other producer converted them. */
export type Variant = Compression | RemoteVariant;
export const VARIANTS: readonly Variant[] = [...COMPRESSIONS, ...REMOTE_VARIANTS];

function isRemote(variant: Variant): variant is RemoteVariant {
  return (REMOTE_VARIANTS as readonly string[]).includes(variant);
}

const MAIN = join(import.meta.dirname, 'main.ts');

function layoutFolder(recipe: Recipe, variant: Variant): string {
  const key = createHash('sha256')
    .update(JSON.stringify([BUILD_VERSION, recipe]))
    .digest('hex')
    .slice(0, 12);
  return join(imageCache(), 'images', `${recipe.name}-${key}-${variant}`);
}

export function isBuilt(name: string, variant: Variant): boolean {
  return existsSync(layoutFolder(recipeOf(name), variant));
}

/** To be called under the lock only (main.ts). */
export async function buildImage(name: string, variant: Variant, signal: AbortSignal): Promise<OciLayout> {
  const recipe = recipeOf(name);
  const folder = layoutFolder(recipe, variant);
  if (existsSync(folder)) return new OciLayout(folder);
  if (isRemote(variant)) {
    return await convertByCtrRemote(await buildImage(name, 'gzip-6', signal), variant, folder, signal);
  }
  const compression = variant;
  const cache = imageCache();
  for (const part of ['images', 'tars', 'bases']) await mkdir(join(cache, part), { recursive: true });
  const mirror = await debianMirror(signal);
  const base = await buildBase(cache, mirror, signal);
  const key = createHash('sha256')
    .update(JSON.stringify([BUILD_VERSION, recipe]))
    .digest('hex')
    .slice(0, 12);
  const tars = [
    await tarOf(join(cache, 'tars', `base-${BUILD_VERSION}-${mirror.suite}.tar`), signal, async () => base),
    await tarOf(join(cache, 'tars', `${name}-${key}-packages.tar`), signal, (work) =>
      buildPackages(recipe, base, work, cache, signal),
    ),
    await tarOf(join(cache, 'tars', `${name}-${key}-files.tar`), signal, (work) => buildFiles(recipe, work)),
  ];
  const createdBy = [
    `debootstrap --variant=minbase ${mirror.suite}`,
    `apt-get install ${recipe.packages.join(' ')}`,
    'COPY app /app',
  ];
  const layers: LayerFile[] = [];
  for (const [i, tar] of tars.entries()) {
    layers.push(await compressLayer(tar, `${folder}.${i}.blob`, compression, createdBy[i] ?? '', signal));
  }
  return await writeOciLayout(folder, layers, {
    command: recipe.command,
    ...(recipe.env === undefined ? {} : { env: recipe.env }),
  });
}

/** A tar in the cache, made from the folder that `build` fills or names. */
async function tarOf(
  tar: string,
  signal: AbortSignal,
  build: (work: string) => Promise<string>,
): Promise<{ readonly path: string; readonly diffId: LayerFile['diffId'] }> {
  if (!existsSync(`${tar}.digest`)) {
    const work = await mkdtemp(join(imageCache(), 'work-'));
    try {
      const source = await build(work);
      await runTool('sh', ['-euc', TAR_SCRIPT, 'tar', source, `${tar}.tmp`], signal);
      await rename(`${tar}.tmp`, tar);
      await writeFile(`${tar}.digest.tmp`, (await digestOfFile(tar)).digest);
      await rename(`${tar}.digest.tmp`, `${tar}.digest`);
    } finally {
      await rm(work, { recursive: true, force: true });
    }
  }
  return { path: tar, diffId: (await readFile(`${tar}.digest`, 'utf8')) as LayerFile['diffId'] };
}

async function buildBase(cache: string, mirror: Mirror, signal: AbortSignal): Promise<string> {
  const base = join(cache, 'bases', `${mirror.suite}-${BUILD_VERSION}`);
  if (existsSync(base)) return base;
  const temporary = `${base}.tmp`;
  await rm(temporary, { recursive: true, force: true });
  await mkdir(temporary, { recursive: true });
  await chmod(temporary, 0o755);
  await isolated(BASE_SCRIPT, [temporary, mirror.url, mirror.suite, cache], signal);
  await rename(temporary, base);
  return base;
}

async function buildPackages(
  recipe: Recipe,
  base: string,
  work: string,
  cache: string,
  signal: AbortSignal,
): Promise<string> {
  // How this machine reaches its mirror (a proxy, clock checks): for the time of the build only.
  const options = join(work, 'apt.conf');
  const acquire = await runTool('apt-config', ['dump', 'Acquire'], signal);
  await writeFile(options, `${acquire}APT::Sandbox::User "root";\n`);
  await isolated(PACKAGES_SCRIPT, [base, work, options, cache, recipe.packages.join(' '), recipe.setup ?? ''], signal);
  await chmod(join(work, 'upper'), 0o755);
  return join(work, 'upper');
}

async function buildFiles(recipe: Recipe, work: string): Promise<string> {
  const root = join(work, 'files');
  await mkdir(root, { mode: 0o755 });
  for (const [path, content] of Object.entries(recipe.files)) {
    await mkdir(dirname(join(root, path)), { recursive: true });
    await writeFile(join(root, path), content);
  }
  // Only the app's own folders belong in this layer, not another root folder's mode.
  return root;
}

interface Mirror {
  readonly url: string;
  readonly suite: string;
}

/** The mirror that this machine's own apt uses. */
async function debianMirror(signal: AbortSignal): Promise<Mirror> {
  const release = await readFile('/etc/os-release', 'utf8');
  const suite = /^VERSION_CODENAME=(\w+)/m.exec(release)?.[1] ?? 'bookworm';
  const targets = await runTool(
    'apt-get',
    ['indextargets', '--format', '$(SITE) $(RELEASE) $(COMPONENT)', 'Identifier: Packages'],
    signal,
  );
  for (const line of targets.split('\n')) {
    const [url, from, component] = line.split(' ');
    if (url !== undefined && from === suite && component === 'main') return { url, suite };
  }
  throw new Error(`Cannot build test images: apt's sources on this machine name no mirror of ${suite} main`);
}

async function isolated(script: string, args: readonly string[], signal: AbortSignal): Promise<void> {
  await runTool(
    'unshare',
    ['--mount', '--pid', '--fork', '--kill-child', '--', 'sh', '-euc', script, 'build', ...args],
    signal,
  );
}
