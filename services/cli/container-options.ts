import { type Command, Option } from 'commander';
import { type AgentFlags, controlSocketOption } from './agent-access.ts';
import { collect } from './option-values.ts';

export interface ContainerFlags extends AgentFlags {
  readonly containerd: string;
  readonly namespace: string;
  readonly snapshotter: string;
  /** `NAME=VALUE`, added to those of the image. */
  readonly env: readonly string[];
  readonly hostNetwork?: true;
}

/** The options of a command that starts a container under containerd; `snapshotterHelp` says what --snapshotter is for. */
export function withContainerOptions(command: Command, snapshotterHelp: string): Command {
  return command
    .addOption(controlSocketOption())
    .addOption(
      new Option('--containerd <path>', "containerd's socket")
        .env('KINDLING_CONTAINERD')
        .default('/run/containerd/containerd.sock'),
    )
    .addOption(
      new Option('-n, --namespace <name>', 'containerd namespace').env('KINDLING_NAMESPACE').default('default'),
    )
    .addOption(new Option('--snapshotter <name>', snapshotterHelp).env('KINDLING_SNAPSHOTTER').default('kindling'))
    .option('-e, --env <name=value>', 'environment variable (may be repeated)', collect, [])
    .option('--host-network', "use the machine's network");
}
