/**
 * Builds test images into the cache: `node test/images/main.ts NAME... [VARIANT...]`, `all` for every recipe. Tests call
 * `testImage`, which runs this under a lock.
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { VARIANTS, buildImage, imageCache, isBuilt, type Variant } from './image-cache.ts';
import { RECIPES } from './recipe.ts';

const words = process.argv.slice(2);
const variants = VARIANTS.filter((variant) => words.includes(variant));
const rest = words.filter((word) => !(VARIANTS as readonly string[]).includes(word));
const names = rest.includes('all') ? RECIPES.map((recipe) => recipe.name) : rest;
if (names.length === 0) {
  console.error(
    `usage: node test/images/main.ts NAME...|all [VARIANT...]\n  images: ${RECIPES.map((recipe) => recipe.name).join(' ')}\n  variants: ${VARIANTS.join(' ')}`,
  );
  process.exit(2);
}
if (process.getuid?.() !== 0) {
  console.error('Cannot build test images: only root can (chroot, overlay)');
  process.exit(1);
}
const wanted = names.flatMap((name) =>
  (variants.length > 0 ? variants : (['gzip-6'] satisfies Variant[])).map((variant) => ({ name, variant })),
);
// Builds share folders: one at a time on the machine. Each takes the lock for itself, so that a test that needs one image does not
// wait for all of another's.
if (process.env['IMAGES_LOCKED'] !== '1') {
  mkdirSync(imageCache(), { recursive: true });
  const script = ['--disable-warning=ExperimentalWarning', import.meta.filename];
  for (const { name, variant } of wanted) {
    if (isBuilt(name, variant)) continue;
    const run = spawnSync('flock', [join(imageCache(), 'lock'), process.execPath, ...script, name, variant], {
      stdio: 'inherit',
      env: { ...process.env, IMAGES_LOCKED: '1' },
    });
    if (run.status !== 0) process.exit(run.status ?? 1);
  }
  process.exit(0);
}
const interrupted = new AbortController();
for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => interrupted.abort());
for (const { name, variant } of wanted) {
  const started = performance.now();
  const layout = await buildImage(name, variant, interrupted.signal);
  const mebibytes = ((await layout.layerBytes()) / 1048576).toFixed(0);
  console.log(`${name} ${variant}: ${mebibytes} MiB, ${((performance.now() - started) / 1000).toFixed(1)} s`);
}
