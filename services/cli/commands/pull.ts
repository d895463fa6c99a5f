import { Command } from 'commander';
import type { ControlClient } from '#shared/control/control-client.ts';
import type { PullEvent } from '#shared/control/control-protocol.ts';
import { parseReference } from '#shared/registry/reference.ts';
import { agentOf, controlSocketOption, type AgentFlags } from '../agent-access.ts';
import { byteText } from '../byte-text.ts';
import { platformText } from '../option-values.ts';
import { ProgressBar } from '../progress-bar.ts';
import { untilInterrupted } from '../until-interrupted.ts';

interface Flags extends AgentFlags {
  readonly namespace?: string;
  readonly platform?: string;
  readonly json?: true;
}

export type PulledImage = Extract<PullEvent, { kind: 'done' }>;
type PulledLayer = Extract<PullEvent, { kind: 'layer' }>;

export class PullError extends Error {
  override readonly name = 'PullError';
  readonly code: string;
  constructor(code: string, message: string) {
    super(message);
    this.code = code;
  }
}

export function command(): Command {
  return new Command('pull')
    .summary('make an image ready to start without fetching its data')
    .description(
      "Gives containerd the image's record, manifest and configuration, and a snapshot for each layer that fills in as it is " +
        'read. A layer that cannot be lazy is downloaded and unpacked, and the reason is said.',
    )
    .argument('<image>', 'image to pull')
    .addOption(controlSocketOption())
    .option('-n, --namespace <name>', "containerd namespace (default: the agent's)")
    .option('--platform <os/arch>', 'platform to choose from an index (default: this machine)', platformText)
    .option('--json', 'print the result as JSON')
    .action(async (image: string, flags: Flags) => {
      // What is no reference is said as that, whether or not an agent is there.
      parseReference(image);
      await untilInterrupted(async (signal) => {
        const { done, layers } = await pullImage(agentOf(flags), image, flags, signal);
        if (flags.json) {
          process.stdout.write(`${JSON.stringify({ ...done, layers })}\n`);
          return;
        }
        for (const layer of layers) {
          const why = layer.reason === undefined ? '' : `  ${layer.reason}`;
          process.stdout.write(
            `${layer.layer.slice(7, 19)}  ${layer.state.padEnd(7)}  ${byteText(layer.sizeBytes).padStart(9)}  ${Math.round(layer.elapsedMs)} ms${why}\n`,
          );
        }
        process.stdout.write(`${done.image} is ready after ${Math.round(done.elapsedMs)} ms\n`);
      });
    });
}

/** @throws PullError, ControlError */
export async function pullImage(
  agent: ControlClient,
  reference: string,
  options: { readonly namespace?: string; readonly platform?: string },
  signal: AbortSignal,
): Promise<{ readonly done: PulledImage; readonly layers: readonly PulledLayer[] }> {
  using bar = new ProgressBar();
  bar.show(0, 1, `Resolving ${reference}`);
  const layers: PulledLayer[] = [];
  const request = {
    reference,
    ...(options.namespace === undefined ? {} : { namespace: options.namespace }),
    ...(options.platform === undefined ? {} : { platform: options.platform }),
  };
  for await (const event of agent.pull(request, signal)) {
    switch (event.kind) {
      case 'layer':
        layers.push(event);
        bar.show(event.done, event.total, `Layers of ${reference}`);
        break;
      case 'done':
        return { done: event, layers };
      case 'failed':
        throw new PullError(event.code, event.message);
    }
  }
  throw new PullError('failed', `Cannot pull ${reference}: the agent's answer ended early`);
}
