/**
 * Memory of agent and keeper with every test image mounted in two forms (20 images with the defaults), right after the pulls and
 * once the node is at rest.
 *
 *   npm run bench -- memory [--images python,node] [--rest-seconds 45] [--json FILE]
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { TestNode } from '#test/harness/node.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { startUntilReady } from '#test/harness/readiness.ts';
import { testImage } from '#test/images/image-cache.ts';
import { RECIPES, recipeOf } from '#test/images/recipe.ts';
import type { BenchValues } from './bench.ts';
import { lazyImage } from './lazy-image.ts';
import { mebibytes, printTable } from './table.ts';

export const title = 'memory of the agent and the keeper with many images mounted';
export const options = {
  images: { type: 'string', default: RECIPES.map(({ name }) => name).join(',') },
  'rest-seconds': { type: 'string', default: '45' },
} as const;

const FORMATS = ['optimized', 'estargz'] as const;

export async function run(values: BenchValues<typeof options>, signal: AbortSignal): Promise<unknown> {
  const names = values.images.split(',').map((name) => recipeOf(name).name);
  await using folder = await TempFolder.create('mm');
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  const references: string[] = [];
  for (const name of names) {
    await registry.push(await testImage(name, signal), name, 'original', signal);
    for (const format of FORMATS) references.push(await lazyImage(name, format, registry, signal));
  }
  await using node = await TestNode.start({}, signal);
  for (const reference of references) await node.kindling.pull(reference, signal);
  // A start says that what is mounted is also served.
  const first = references[0] ?? '';
  await startUntilReady(node.containerd, first, recipeOf(names[0] ?? ''), 'kindling', signal);
  const layers = (await node.kindling.client.layers(signal)).length;
  const busy = await node.kindling.memory();
  await sleep(Number(values['rest-seconds']) * 1000, undefined, { signal });
  const rest = await node.kindling.memory();
  const row = (name: string, memory: typeof busy): string[] => [
    name,
    mebibytes(memory.agent.residentBytes),
    mebibytes(memory.keeper.residentBytes),
    mebibytes(memory.agent.proportionalBytes + memory.keeper.proportionalBytes),
    mebibytes(memory.agent.peakBytes),
  ];
  console.log(`${references.length} images, ${layers} layers mounted. MiB; together = shared pages counted once`);
  printTable(['', 'agent', 'keeper', 'together', 'agent peak'], [row('after the pulls', busy), row('at rest', rest)]);
  return { images: references.length, layers, busy, rest };
}
