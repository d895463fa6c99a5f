/**
 * Every test image in every form: mounted by the real agent, its rootfs compared with what containerd unpacks, its layer images
 * checked, and how much of it a start fetched.
 *
 *   npm run bench -- rootfs [--images python,node] [--forms gzip-1,estargz] [--json FILE]
 *
 * Of all images and forms it takes an hour and more; the options choose a part. Ends with exit code 1 on any difference.
 */
import { chainIds } from '#test/harness/chain-id.ts';
import { walkTree } from '#test/harness/compare-trees.ts';
import { TestContainerd } from '#test/harness/containerd.ts';
import { LinkProcess } from '#test/harness/link-process.ts';
import { TestNode } from '#test/harness/node.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { CHECKED_NODE, checkRootfs, type CheckedRootfs } from '#test/harness/rootfs-check.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import type { TreeEntry } from '#test/harness/walk-tree.ts';
import { testImage } from '#test/images/image-cache.ts';
import { IMAGE_FORMS, indexBeside, isAsPushed, isOurs, pushForm, type ImageForm } from '#test/images/image-forms.ts';
import { RECIPES, recipeOf, type Recipe } from '#test/images/recipe.ts';
import type { BenchValues } from './bench.ts';
import { mebibytes, printTable } from './table.ts';

export const title = 'every test image in every form: is its rootfs right, and how much of it does a start fetch';
export const options = {
  images: { type: 'string', default: RECIPES.map(({ name }) => name).join(',') },
  forms: { type: 'string', default: IMAGE_FORMS.join(',') },
} as const;

interface Row extends Partial<Omit<CheckedRootfs, 'layers' | 'reference'>> {
  readonly image: string;
  readonly form: ImageForm;
  /** Of all layers. */
  readonly totalBytes?: number;
  readonly problems: readonly string[];
  /** Why another producer does not make this form. */
  readonly cannot?: string;
  readonly seconds: number;
}

export async function run(values: BenchValues<typeof options>, signal: AbortSignal): Promise<unknown> {
  const { images, forms } = parse(values);
  const rows: Row[] = [];
  for (const recipe of images) {
    await using folder = await TempFolder.create('rb');
    await using registry = await TestRegistry.start({ folder: folder.path }, signal);
    const expected = await unpacked(recipe, registry, folder, signal);
    for (const form of forms) {
      const started = performance.now();
      const checked = await check(recipe, form, expected, registry, folder, signal);
      const row = { image: recipe.name, form, ...checked, seconds: (performance.now() - started) / 1000 };
      rows.push(row);
      console.log(`${recipe.name} ${form}: ${shown(row).slice(1).join(', ')} (${row.seconds.toFixed(0)} s)`);
      for (const problem of row.problems) console.log(`  ${problem}`);
    }
  }
  console.log('');
  printTable(['image, form', 'total MiB', 'pull MiB', 'ready MiB', 'of total', 'entries', 'result'], rows.map(shown));
  const wrong = rows.filter((row) => row.problems.length > 0);
  // Not thrown: the JSON is to name what differs.
  if (wrong.length > 0) process.exitCode = 1;
  console.log(`\n${rows.length} checked, ${wrong.length} wrong. ready: all bytes from the registry until it was ready`);
  return { rows };
}

/** The rootfs as containerd unpacks it from the image as pushed. */
async function unpacked(
  recipe: Recipe,
  registry: TestRegistry,
  folder: TempFolder,
  signal: AbortSignal,
): Promise<ReadonlyMap<string, TreeEntry>> {
  const layout = await testImage(recipe.name, signal);
  const reference = await registry.push(layout, recipe.name, 'original', signal);
  await using containerd = await TestContainerd.start({ folder: folder.join('c') }, signal);
  await containerd.pull(reference, 'overlayfs', signal);
  const top = chainIds((await layout.config()).rootfs.diff_ids).at(-1) ?? '';
  await using mounted = await containerd.mountImage(top, 'overlayfs', folder.join('m'), signal);
  void mounted;
  return await walkTree(folder.join('m'), signal);
}

async function check(
  recipe: Recipe,
  form: ImageForm,
  expected: ReadonlyMap<string, TreeEntry>,
  registry: TestRegistry,
  folder: TempFolder,
  signal: AbortSignal,
): Promise<Omit<Row, 'image' | 'form' | 'seconds'>> {
  const source = {
    name: recipe.name,
    layout: async (variant: Parameters<typeof testImage>[2]) => await testImage(recipe.name, signal, variant),
  };
  try {
    const reference = await pushForm(source, form, registry, folder.path, signal);
    if (isAsPushed(form)) await indexBeside(reference, signal);
  } catch (error) {
    signal.throwIfAborted();
    const message = error instanceof Error ? error.message : String(error);
    return isAsPushed(form) || isOurs(form) ? { problems: [message] } : { problems: [], cannot: message };
  }
  try {
    await using link = await LinkProcess.start(registry.port, {}, signal);
    await using node = await TestNode.start(CHECKED_NODE, signal);
    const { layers, pullBytes, startBytes, entries, problems } = await checkRootfs(
      node,
      link,
      {
        repository: `${recipe.name}:${form}`,
        expected,
        start: recipe,
        // Other producers round times to seconds in their table of contents.
        compare: { mtimeRounded: !isAsPushed(form) && !isOurs(form) },
      },
      signal,
    );
    return {
      pullBytes,
      startBytes,
      entries,
      problems,
      totalBytes: layers.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
    };
  } catch (error) {
    signal.throwIfAborted();
    return { problems: [error instanceof Error ? error.message : String(error)] };
  }
}

function shown(row: Row): string[] {
  const { totalBytes = 0, pullBytes = 0, startBytes = 0 } = row;
  const result = row.cannot === undefined ? (row.problems.length === 0 ? 'equal' : 'WRONG') : 'not made';
  return [
    `${row.image} ${row.form}`,
    mebibytes(totalBytes),
    mebibytes(pullBytes),
    mebibytes(startBytes),
    totalBytes === 0 ? '' : `${((100 * startBytes) / totalBytes).toFixed(0)} %`,
    String(row.entries ?? ''),
    result,
  ];
}

function parse(values: BenchValues<typeof options>): {
  readonly images: readonly Recipe[];
  readonly forms: readonly ImageForm[];
} {
  const forms = values.forms.split(',').map((name) => {
    const form = IMAGE_FORMS.find((each) => each === name);
    if (form === undefined) throw new Error(`--forms: ${name} is none of ${IMAGE_FORMS.join(', ')}`);
    return form;
  });
  return { images: values.images.split(',').map(recipeOf), forms };
}
