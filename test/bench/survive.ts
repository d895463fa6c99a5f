/**
 * Soak: containers of several images read their whole rootfs at random, with checksums, while the agent is killed with -9: at any
 * moment, and within pulls, mounts, span fetches, commits, evictions, take-overs and reloads. Fails where something is left.
 *
 *   npm run bench -- survive [--images perl,python,node] [--kills 100] [--delay-ms 5] [--json FILE]
 */
import { pushChurnImage } from '#test/harness/churn-image.ts';
import { LinkProcess } from '#test/harness/link-process.ts';
import { TestNode } from '#test/harness/node.ts';
import { TestRegistry } from '#test/harness/registry.ts';
import { soak, SOAK_SETTINGS, type SoakOptions } from '#test/harness/soak.ts';
import { TempFolder } from '#test/harness/temp-folder.ts';
import { testImage } from '#test/images/image-cache.ts';
import type { BenchValues } from './bench.ts';
import { mebibytes, printTable } from './table.ts';

export const title = 'containers that read at random while the agent is killed again and again';
export const options = {
  images: { type: 'string', default: 'perl,python,node' },
  kills: { type: 'string', default: '100' },
  'delay-ms': { type: 'string', default: '5' },
} as const;

export async function run(values: BenchValues<typeof options>, signal: AbortSignal): Promise<unknown> {
  await using folder = await TempFolder.create('sb');
  await using registry = await TestRegistry.start({ folder: folder.path }, signal);
  await using link = await LinkProcess.start(registry.port, { delayMs: Number(values['delay-ms']) }, signal);
  const churn = await pushChurnImage(registry, link.host, folder, signal);
  await using node = await TestNode.start(SOAK_SETTINGS, signal);
  const references: string[] = [];
  for (const name of values.images.split(',')) {
    await registry.push(await testImage(name, signal, 'ctr-remote-optimized'), name, 'optimized', signal);
    references.push(`${link.host}/${name}:optimized`);
  }
  const options: SoakOptions = {
    kills: Number(values.kills),
    pauseMs: () => 100 + Math.random() * 1_900,
    reloads: true,
    everyKind: true,
    quietRounds: 10,
    onRound: (kills) => console.error(`${kills.length} of ${values.kills} kills`),
  };
  const result = await soak(node, references, churn, options, signal);
  printTable(
    ['killed within', 'kills', 'inside', 'median ms', 'p95 ms', 'longest ms'],
    [...result.kinds, { kind: 'all', kills: result.kills, inside: undefined, gapMs: result.gapMs }].map(
      ({ kind, kills, inside, gapMs }) => [
        kind,
        String(kills),
        inside === undefined ? '' : String(inside),
        ...(gapMs === undefined ? ['-', '-', '-'] : [gapMs.median, gapMs.p95, gapMs.longest].map(String)),
      ],
    ),
  );
  console.log(
    'ms: from the death of an agent that served to the first answer of another; take-over: of two that died in a row\n',
  );
  const { before, after } = result.memory;
  printTable(
    ['rounds in containers', 'reads', 'MiB read', 'longest read', 'spans verified', 'agent MiB', 'keeper MiB'],
    [
      [
        String(result.containerRounds),
        String(result.reads),
        mebibytes(result.bytes),
        `${result.longestReadMs} ms`,
        String(result.verified.spans),
        `${mebibytes(before.agent.residentBytes)} -> ${mebibytes(after.agent.residentBytes)}`,
        `${mebibytes(before.keeper.residentBytes)} -> ${mebibytes(after.keeper.residentBytes)}`,
      ],
    ],
  );
  for (const { ms, path, meanwhile } of result.longestReads) console.log(`${ms} ms ${path}: ${meanwhile.join('; ')}`);
  return { images: values.images, ...result };
}
