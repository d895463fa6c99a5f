/**
 * Soak: containers of several images read their whole rootfs at random, with checksums, while the agent is killed with -9.
 *
 *   npm run bench -- survive [--images perl,python,node] [--kills 100] [--delay-ms 5] [--json FILE]
 */
import { parseArgs } from 'node:util';
import { walkTree } from '#test/harness/compare-trees.ts';
import { LinkProcess } from '#test/harness/link-process.ts';
import { TestNode } from '#test/harness/node.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { soak, type SoakImage } from '#test/harness/soak.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { testImage } from '#test/images/image-cache.ts';
import { mebibytes, printTable } from './table.ts';

export const title = 'containers that read at random while the agent is killed again and again';

export async function run(
  args: readonly string[],
  signal: AbortSignal = new AbortController().signal,
): Promise<unknown> {
  const { values } = parseArgs({
    args: [...args],
    options: {
      images: { type: 'string', default: 'perl,python,node' },
      kills: { type: 'string', default: '100' },
      'delay-ms': { type: 'string', default: '5' },
    },
  });
  await using folder = await TempFolder.create('sb');
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  await using link = await LinkProcess.start(registry.port, { delayMs: Number(values['delay-ms']) }, signal);
  // Slow background completion: most reads of the soak need the agent.
  await using node = await TestNode.start({ KINDLING_BACKGROUND_RATE: '1M' }, signal);
  const images: SoakImage[] = [];
  for (const name of values.images.split(',')) {
    await registry.push(await testImage(name, signal, 'ctr-remote-optimized'), name, 'optimized', signal);
    const reference = `${link.host}/${name}:optimized`;
    const { chainId } = await node.kindling.pull(reference, signal);
    await node.containerd.pull(reference, 'overlayfs', signal);
    const tree = await node.withRootfs(chainId, 'overlayfs', signal, async (rootfs) => await walkTree(rootfs, signal));
    images.push({ reference, chainId, tree });
  }
  const result = await soak(
    node,
    images,
    { kills: Number(values.kills), pauseMs: () => 100 + Math.random() * 1_900 },
    signal,
  );
  const memory = await node.kindling.memory();
  printTable(
    ['agent killed', 'rounds in containers', 'reads', 'MiB read', 'longest read', 'agent MiB', 'keeper MiB'],
    [
      [
        String(result.kills),
        String(result.containerRounds),
        String(result.reads),
        mebibytes(result.bytes),
        `${result.longestReadMs} ms`,
        mebibytes(memory.agent.peakBytes),
        mebibytes(memory.keeper.peakBytes),
      ],
    ],
  );
  return { images: values.images, ...result, memory };
}
