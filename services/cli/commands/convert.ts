import { readFile } from 'node:fs/promises';
import { Command, InvalidArgumentError, Option } from 'commander';
import { bytes as bytesSchema } from '#shared/config/settings.ts';
import { convertImage, type ConvertProgress, type ConvertResult } from '#shared/convert/convert-image.ts';
import type { ConvertFormat } from '#shared/convert/layer-converter.ts';
import { parsePlatform } from '#shared/registry/platform.ts';
import { formatReference, parseReference } from '#shared/registry/reference.ts';
import { byteText } from '../byte-text.ts';
import { registryAccess } from '../registry-access.ts';
import { untilInterrupted } from '../until-interrupted.ts';

interface Flags {
  readonly format: ConvertFormat;
  readonly platform: readonly string[];
  readonly chunkSize?: number;
  readonly minChunkSize?: number;
  readonly level?: number;
  readonly prioritize?: string;
  readonly spool?: string;
  readonly plainHttp: readonly string[];
  readonly json?: true;
  readonly verbose?: true;
}

export function command(): Command {
  return new Command('convert')
    .summary('write an image anew so that it can be read lazily by everyone')
    .description(
      'Converts SRC to eStargz or zstd:chunked and pushes it as DST, registry to registry. Kindling itself starts images lazily ' +
        'without this; converted ones need no index and also serve other lazy snapshotters.',
    )
    .argument('<src>', 'image to convert')
    .argument('<dst>', 'name and tag to push to')
    .addOption(
      new Option('--format <format>', 'format of the layers').choices(['estargz', 'zstd-chunked']).default('estargz'),
    )
    .option('--platform <os/arch>', 'only this platform (may be repeated; default: all)', collect, [])
    .option('--chunk-size <bytes>', 'largest part of a file that is read alone, such as 4MiB', size)
    .option('--min-chunk-size <bytes>', 'let small files share a part of this size', size)
    .option('--level <n>', 'compression level', wholeNumber)
    .option('--prioritize <file>', 'paths that a start reads, one on a line, in order; they come first in their layers')
    .option('--spool <dir>', 'where layers are kept until they are uploaded (default: the temp folder)')
    .option(
      '--plain-http <host>',
      'speak plain HTTP to this host[:port] (may be repeated; loopback always)',
      collect,
      [],
    )
    .option('--json', 'print the result as JSON')
    .option('-v, --verbose', 'log requests that are tried again')
    .action(async (src: string, dst: string, flags: Flags) => {
      await untilInterrupted((signal) => convert(src, dst, flags, signal));
    });
}

async function convert(src: string, dst: string, flags: Flags, signal: AbortSignal): Promise<void> {
  const prioritize =
    flags.prioritize === undefined
      ? undefined
      : pathsOf(await readFile(flags.prioritize, { encoding: 'utf8', signal }));
  const client = registryAccess(flags.plainHttp, flags.verbose === true);
  const progress = new ProgressLine(flags.json !== true && process.stderr.isTTY);
  try {
    const target = parseReference(dst);
    const result = await convertImage(
      {
        source: parseReference(src),
        target,
        client,
        format: flags.format,
        platforms: flags.platform.length === 0 ? 'all' : flags.platform.map(parsePlatform),
        chunkSize: flags.chunkSize,
        minChunkSize: flags.minChunkSize,
        level: flags.level,
        prioritize,
        spoolFolder: flags.spool,
        onProgress: (step) => progress.show(step),
      },
      signal,
    );
    progress.clear();
    if (flags.json === true) console.log(JSON.stringify(result));
    else print(formatReference({ ...target, digest: result.descriptor.digest }), result);
  } finally {
    progress.clear();
    await client.close();
  }
}

function print(name: string, result: ConvertResult): void {
  for (const image of result.images) {
    console.log(`${image.platform}  ${image.digest}`);
    for (const layer of image.layers) {
      const sizes = `${byteText(layer.sourceBytes).padStart(9)} -> ${byteText(layer.targetBytes).padStart(9)}`;
      console.log(`  ${layer.action.padEnd(9)}  ${sizes}  ${layer.target}`);
    }
  }
  console.log(name);
}

/** One line on a terminal that says how far all layers are. */
class ProgressLine {
  readonly #isOn: boolean;
  readonly #layers = new Map<string, ConvertProgress>();
  #shownAtMs = 0;

  constructor(isOn: boolean) {
    this.#isOn = isOn;
  }

  show(step: ConvertProgress): void {
    if (!this.#isOn) return;
    this.#layers.set(step.layer, step);
    const nowMs = Date.now();
    if (nowMs - this.#shownAtMs < 100) return;
    this.#shownAtMs = nowMs;
    const all = [...this.#layers.values()];
    const read = all.reduce((sum, layer) => sum + layer.bytesRead, 0);
    const total = all.reduce((sum, layer) => sum + layer.bytesTotal, 0);
    const done = all.filter((layer) => layer.action !== undefined).length;
    const filled = total === 0 ? 0 : Math.round((read / total) * 30);
    const bar = '█'.repeat(filled).padEnd(30, '░');
    process.stderr.write(
      `\r\x1b[K${bar} ${byteText(read)} of ${byteText(total)}, ${done} of ${all.length} layers done`,
    );
  }

  clear(): void {
    if (this.#isOn && this.#shownAtMs > 0) process.stderr.write('\r\x1b[K');
    this.#shownAtMs = 0;
  }
}

/** Empty lines and lines that begin with "#" are skipped. */
function pathsOf(text: string): string[] {
  return text
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('#'));
}

function collect(value: string, before: readonly string[]): string[] {
  return [...before, value];
}

function size(value: string): number {
  const parsed = bytesSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new InvalidArgumentError('write a number of bytes, such as 512KiB');
}

function wholeNumber(value: string): number {
  if (/^\d{1,2}$/.test(value)) return Number(value);
  throw new InvalidArgumentError('write a whole number');
}
