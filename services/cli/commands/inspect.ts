import { Command } from 'commander';
import { type Descriptor, MEDIA_TYPES } from '#shared/registry/manifest.ts';
import { formatPlatform, hostPlatform, parsePlatform } from '#shared/registry/platform.ts';
import { parseReference } from '#shared/registry/reference.ts';
import { byteText } from '../byte-text.ts';
import { registryAccess } from '../registry-access.ts';
import { untilInterrupted } from '../until-interrupted.ts';

interface Flags {
  readonly platform?: string;
  readonly plainHttp: readonly string[];
  readonly json?: true;
  readonly verbose?: true;
}

/** How a layer can be read without the whole blob, as its descriptor tells. */
interface LayerReport {
  readonly digest: string;
  readonly mediaType: string;
  readonly sizeBytes: number;
  readonly format: string;
  /** `as it is`, or what it needs first. */
  readonly lazy: string;
}

export function command(): Command {
  return new Command('inspect')
    .summary('say what an image in a registry consists of and how its layers can be read lazily')
    .argument('<image>', 'image to look at')
    .option('--platform <os/arch>', 'platform to choose from an index (default: this machine)')
    .option(
      '--plain-http <host>',
      'speak plain HTTP to this host[:port] (may be repeated; loopback always)',
      collect,
      [],
    )
    .option('--json', 'print as JSON')
    .option('-v, --verbose', 'log requests that are tried again')
    .action(async (image: string, flags: Flags) => {
      await untilInterrupted((signal) => inspect(image, flags, signal));
    });
}

async function inspect(image: string, flags: Flags, signal: AbortSignal): Promise<void> {
  const client = registryAccess(flags.plainHttp, flags.verbose === true);
  try {
    const reference = parseReference(image);
    const platform = flags.platform === undefined ? hostPlatform() : parsePlatform(flags.platform);
    const found = await client.platformManifest(reference, platform, signal);
    const referrers = await client.referrers(reference.repository, found.descriptor.digest, undefined, signal);
    const platforms =
      found.index?.parsed.kind === 'index'
        ? found.index.parsed.manifests.flatMap((entry) => (entry.platform ? [formatPlatform(entry.platform)] : []))
        : [];
    const layers = found.parsed.layers.map(reportOf);
    const report = {
      repository: reference.repository,
      digest: found.descriptor.digest,
      platform: formatPlatform(platform),
      platforms,
      sizeBytes: layers.reduce((sum, layer) => sum + layer.sizeBytes, 0),
      layers,
      referrers: referrers.map(({ digest, artifactType }) => ({ digest, artifactType: artifactType ?? '' })),
    };
    if (flags.json === true) {
      console.log(JSON.stringify(report));
      return;
    }
    console.log(`${report.repository}@${report.digest}`);
    console.log(`platform   ${report.platform}${platforms.length > 0 ? `  (of ${platforms.join(', ')})` : ''}`);
    console.log(`layers     ${layers.length}, ${byteText(report.sizeBytes)}`);
    for (const layer of layers) {
      console.log(
        `  ${byteText(layer.sizeBytes).padStart(9)}  ${layer.format.padEnd(12)}  ${layer.lazy.padEnd(22)}  ${layer.digest}`,
      );
    }
    for (const referrer of report.referrers) console.log(`referrer   ${referrer.artifactType}  ${referrer.digest}`);
  } finally {
    await client.close();
  }
}

function reportOf(layer: Descriptor): LayerReport {
  const { digest, mediaType, size: sizeBytes, annotations = {} } = layer;
  const report = (format: string, lazy: string): LayerReport => ({ digest, mediaType, sizeBytes, format, lazy });
  if (annotations['containerd.io/snapshot/stargz/toc.digest'] !== undefined) return report('eStargz', 'as it is');
  if (annotations['io.github.containers.zstd-chunked.manifest-position'] !== undefined)
    return report('zstd:chunked', 'as it is');
  if (annotations['io.containers.zstd-chunked.manifest-position'] !== undefined)
    return report('zstd:chunked', 'as it is (old form)');
  if (mediaType.endsWith('gzip')) return report('gzip', 'with an index');
  if (mediaType.endsWith('zstd')) return report('zstd', 'where it has frames');
  if (mediaType === MEDIA_TYPES.ociLayerTar || mediaType.endsWith('.tar')) return report('tar', 'with an index');
  return report('unknown', 'no');
}

function collect(value: string, before: readonly string[]): string[] {
  return [...before, value];
}
