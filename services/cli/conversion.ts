import { type Command, InvalidArgumentError, Option } from 'commander';
import { bytes as bytesSchema } from '#shared/config/settings.ts';
import { convertImage, type ConvertProgress, type ConvertResult } from '#shared/convert/convert-image.ts';
import type { ConvertFormat } from '#shared/convert/layer-converter.ts';
import type { Platform } from '#shared/registry/manifest.ts';
import { formatReference, parseReference } from '#shared/registry/reference.ts';
import { byteText } from './byte-text.ts';
import { ProgressBar } from './progress-bar.ts';
import { wholeNumber } from './option-values.ts';
import { registryAccess, type RegistryFlags, withRegistryOptions } from './registry-access.ts';

/** Levels that the compressors of the formats take: zlib's, and zstd's. */
const MOST_LEVEL: Readonly<Record<ConvertFormat, number>> = { estargz: 9, 'zstd-chunked': 22 };

/** Flags of every command that writes an image anew. */
export interface ConversionFlags extends RegistryFlags {
  readonly format: ConvertFormat;
  readonly chunkSize?: number;
  readonly minChunkSize?: number;
  readonly level?: number;
  readonly spool?: string;
}

export function withConversionOptions(command: Command): Command {
  const formats = ['estargz', 'zstd-chunked'];
  command
    .addOption(new Option('--format <format>', 'format of the layers').choices(formats).default('estargz'))
    .option(
      '--chunk-size <bytes>',
      'largest part of a file that is read alone (default: 1MiB; smaller: less read in vain, larger: a smaller TOC)',
      size,
    )
    .option('--min-chunk-size <bytes>', 'let small files share a part of this size (eStargz)', size)
    .option(
      '--level <n>',
      `compression level: 1 to ${MOST_LEVEL.estargz} for eStargz, to ${MOST_LEVEL['zstd-chunked']} for zstd:chunked`,
      wholeNumber,
    )
    .option('--spool <dir>', 'where layers are kept until they are uploaded (default: the temp folder)');
  command.hook('preAction', () => checkLevel(command));
  return withRegistryOptions(command);
}

/** @throws CommanderError */
function checkLevel(command: Command): void {
  const { level, format } = command.opts<ConversionFlags>();
  const most = MOST_LEVEL[format];
  if (level === undefined || (level >= 1 && level <= most)) return;
  command.error(`error: option '--level <n>' argument '${level}' is invalid. ${format} takes 1 to ${most}`);
}

/** Converts and shows how far it is. */
export async function convertWithProgress(
  src: string,
  dst: string,
  what: { readonly platforms: 'all' | readonly Platform[]; readonly prioritize?: readonly string[] | undefined },
  flags: ConversionFlags,
  signal: AbortSignal,
): Promise<ConvertResult> {
  const client = registryAccess(flags);
  using bar = new ProgressBar();
  try {
    const progress = new Map<string, ConvertProgress>();
    return await convertImage(
      {
        source: parseReference(src),
        target: parseReference(dst),
        client,
        format: flags.format,
        platforms: what.platforms,
        chunkSize: flags.chunkSize,
        minChunkSize: flags.minChunkSize,
        level: flags.level,
        prioritize: what.prioritize,
        spoolFolder: flags.spool,
        onProgress: (step) => {
          progress.set(step.layer, step);
          show(bar, [...progress.values()]);
        },
      },
      signal,
    );
  } finally {
    await client.close();
  }
}

export function conversionText(dst: string, result: ConvertResult): string {
  const lines: string[] = [];
  for (const image of result.images) {
    lines.push(`${image.platform}  ${image.digest}`);
    for (const layer of image.layers) {
      const sizes = `${byteText(layer.sourceBytes).padStart(9)} -> ${byteText(layer.targetBytes).padStart(9)}`;
      lines.push(`  ${layer.action.padEnd(9)}  ${sizes}  ${layer.target}`);
    }
  }
  lines.push(formatReference({ ...parseReference(dst), digest: result.descriptor.digest }));
  return lines.join('\n');
}

function show(bar: ProgressBar, layers: readonly ConvertProgress[]): void {
  const read = layers.reduce(
    (sum, layer) => sum + (layer.action === undefined ? layer.bytesRead : layer.bytesTotal),
    0,
  );
  const total = layers.reduce((sum, layer) => sum + layer.bytesTotal, 0);
  const done = layers.filter((layer) => layer.action !== undefined).length;
  bar.show(read, total, `${byteText(read)} of ${byteText(total)}, ${done} of ${layers.length} layers done`);
}

function size(value: string): number {
  const parsed = bytesSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new InvalidArgumentError('write a number of bytes, such as 512KiB');
}
