import { randomBytes } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { Command } from 'commander';
import { runContainer } from '#shared/containerd/container.ts';
import { ContainerdClient } from '#shared/containerd/containerd-client.ts';
import { ContentStore } from '#shared/containerd/content-store.ts';
import { ImageRecords } from '#shared/containerd/image-records.ts';
import { hostPlatform } from '#shared/registry/platform.ts';
import { formatReference, parseReference } from '#shared/registry/reference.ts';
import { agentOf } from '../agent-access.ts';
import { type ContainerFlags, withContainerOptions } from '../container-options.ts';
import { type ConversionFlags, conversionText, convertWithProgress, withConversionOptions } from '../conversion.ts';
import { wholeNumber } from '../option-values.ts';
import { OpenRecorder, RecordError } from '../open-recorder.ts';
import { untilInterrupted } from '../until-interrupted.ts';
import { pullImage } from './pull.ts';

interface Flags extends ContainerFlags, ConversionFlags {
  readonly period: number;
  readonly record?: string;
}

const CLEANUP_MS = 30_000;

export function command(): Command {
  const optimize = new Command('optimize')
    .summary("run an image's start, and write the image anew with what that reads first")
    .description(
      'Starts SRC, notes which files it opens and in which order, and pushes DST in a lazy format with these files first in their ' +
        'layers: they are then fetched first, by Kindling and by other lazy snapshotters. For the platform of this machine.',
    )
    .argument('<src>', 'image to start and convert')
    .argument('<dst>', 'name and tag to push to')
    .argument('[command...]', "command in place of the image's own; options for kindling stand before the image")
    .option('--period <seconds>', 'how long the start is watched, if it does not end earlier', wholeNumber, 10)
    .option('--record <file>', 'also write the list of files there (for convert --prioritize)');
  withContainerOptions(optimize, 'snapshotter to start with; with another than ours the image must be pulled already');
  // As with `run`: what stands behind the names belongs to the container.
  return withConversionOptions(optimize)
    .passThroughOptions()
    .action(async (src: string, dst: string, args: string[], flags: Flags) => {
      await untilInterrupted(async (signal) => {
        const source = formatReference(parseReference(src));
        parseReference(dst);
        const files = await recordStart(source, args, flags, signal);
        if (flags.record !== undefined) await writeFile(flags.record, `${files.join('\n')}\n`, { signal });
        const what = { platforms: [hostPlatform()], prioritize: files };
        const result = await convertWithProgress(source, dst, what, flags, signal);
        if (flags.json === true) console.log(JSON.stringify({ ...result, files: files.length }));
        else console.log(`${files.length} files are opened by the start\n${conversionText(dst, result)}`);
      });
    });
}

/** Files that the start opens, in the order of their first opening. */
async function recordStart(
  name: string,
  args: readonly string[],
  flags: Flags,
  signal: AbortSignal,
): Promise<readonly string[]> {
  const containerd = new ContainerdClient({ address: flags.containerd, namespace: flags.namespace });
  let recorder: OpenRecorder | undefined;
  try {
    if (flags.snapshotter === 'kindling') await pullImage(agentOf(flags), name, flags, signal);
    const image = await new ImageRecords(containerd, new ContentStore(containerd)).load(name, hostPlatform(), signal);
    const container = await runContainer(
      containerd,
      {
        id: `kindling-optimize-${randomBytes(6).toString('hex')}`,
        image,
        snapshotter: flags.snapshotter,
        args,
        env: flags.env,
        hostNetwork: flags.hostNetwork === true,
        onCreated: (pid) => {
          recorder = new OpenRecorder(`/proc/${pid}/root`);
        },
      },
      signal,
    );
    try {
      container.stdout.pipe(process.stderr, { end: false });
      container.stderr.pipe(process.stderr, { end: false });
      const over = new AbortController();
      const period = sleep(flags.period * 1000, undefined, { signal: AbortSignal.any([signal, over.signal]) });
      await Promise.race([container.exited, period]).finally(() => over.abort());
      await period.catch(() => {});
      signal.throwIfAborted();
      const files = recorder?.files() ?? [];
      if (files.length === 0) throw new RecordError(`Cannot optimise ${name}: its start opened no file`);
      return files;
    } finally {
      await container.remove(AbortSignal.timeout(CLEANUP_MS));
    }
  } finally {
    recorder?.[Symbol.dispose]();
    containerd.close();
  }
}
