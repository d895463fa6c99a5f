import { readFile } from 'node:fs/promises';
import { Command } from 'commander';
import { parsePlatform } from '#shared/registry/platform.ts';
import { type ConversionFlags, conversionText, convertWithProgress, withConversionOptions } from '../conversion.ts';
import { collect, platformText } from '../option-values.ts';
import { untilInterrupted } from '../until-interrupted.ts';

interface Flags extends ConversionFlags {
  readonly platform: readonly string[];
  readonly prioritize?: string;
}

export function command(): Command {
  const convert = new Command('convert')
    .summary('write an image anew so that it can be read lazily by everyone')
    .description(
      'Converts SRC to eStargz or zstd:chunked and pushes it as DST, registry to registry. Kindling itself starts images lazily ' +
        'without this; converted ones need no index and also serve other lazy snapshotters.',
    )
    .argument('<src>', 'image to convert')
    .argument('<dst>', 'name and tag to push to')
    .option('--platform <os/arch>', 'only this platform (may be repeated; default: all)', addPlatform, [])
    .option(
      '--prioritize <file>',
      'paths that a start reads, one on a line, in order; they come first in their layers',
    );
  return withConversionOptions(convert).action(async (src: string, dst: string, flags: Flags) => {
    const result = await untilInterrupted(async (signal) => {
      const platforms = flags.platform.length === 0 ? 'all' : flags.platform.map(parsePlatform);
      const { prioritize } = flags;
      const list =
        prioritize === undefined ? undefined : pathsOf(await readFile(prioritize, { encoding: 'utf8', signal }));
      return await convertWithProgress(src, dst, { platforms, prioritize: list }, flags, signal);
    });
    console.log(flags.json === true ? JSON.stringify(result) : conversionText(dst, result));
  });
}

function addPlatform(value: string, before: readonly string[]): string[] {
  return collect(platformText(value), before);
}

/** Empty lines and lines that begin with "#" are skipped. */
function pathsOf(text: string): string[] {
  return text
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('#'));
}
