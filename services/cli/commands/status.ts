import { Command } from 'commander';
import type { AgentStatus, LayerStatus } from '#shared/control/control-protocol.ts';
import { agentOf, controlSocketOption, type AgentFlags } from '../agent-access.ts';
import { byteText } from '../byte-text.ts';
import { table } from '../table.ts';
import { untilInterrupted } from '../until-interrupted.ts';

interface Flags extends AgentFlags {
  readonly json?: true;
}

export function command(): Command {
  return new Command('status')
    .summary("what the node's agent holds: layers, residency, mounts, bytes, and which containers read through it")
    .addOption(controlSocketOption())
    .option('--json', 'print as JSON')
    .action(async (flags: Flags) => {
      await untilInterrupted(async (signal) => {
        const agent = agentOf(flags);
        const [status, layers] = await Promise.all([agent.status(signal), agent.layers(signal)]);
        process.stdout.write(
          flags.json ? `${JSON.stringify({ ...status, list: layers })}\n` : `${textOf(status, layers)}\n`,
        );
      });
    });
}

function textOf(status: AgentStatus, layers: readonly LayerStatus[]): string {
  const { fuse, layers: sums } = status;
  const quota = sums.quotaBytes === 0 ? 'no quota' : `of ${byteText(sums.quotaBytes)}`;
  const lines = [
    `Agent ${status.version}, pid ${status.pid}, ${byteText(status.rssBytes)} of memory, up ${duration(Date.now() - status.startedAtMs)}`,
    `FUSE by ${fuse.transport}: ${fuse.reads} reads, ${byteText(fuse.bytes)}, ${fuse.errors} errors, ${fuse.waiting} waiting`,
    `${sums.total} layers, ${sums.mounted} mounted, ${sums.complete} complete, ${byteText(sums.diskBytes)} on disk (${quota})`,
  ];
  if (layers.length > 0) {
    const rows = layers.map((layer) => [
      layer.layer.slice(7, 19),
      `${layer.format}${layer.inOrder ? ', in order' : ''}${layer.tarChecked ? '' : ', tar unchecked'}`,
      layer.mounted,
      `${layer.residentSpans}/${layer.spans}`,
      byteText(layer.diskBytes),
      byteText(layer.bytesBySource.registry),
      byteText(layer.bytesBySource.peer),
      String(layer.stalls),
      layer.images[0] ?? '',
    ]);
    const head = ['LAYER', 'FORMAT', 'MOUNTED', 'SPANS', 'ON DISK', 'REGISTRY', 'PEERS', 'STALLS', 'IMAGE'];
    lines.push('', table(head, rows, [3, 4, 5, 6, 7]));
  }
  if (status.dependents.length > 0) {
    lines.push('', 'Read through the agent as long as they run, since they started before their layers were complete:');
    for (const { mount, snapshot, layers: all, incompleteLayers } of status.dependents) {
      const left = incompleteLayers === 0 ? 'complete by now' : `${incompleteLayers} not complete`;
      lines.push(`  ${snapshot ?? mount} (${all} layer${all === 1 ? '' : 's'}, ${left})`);
    }
  }
  if (status.notLazy.length > 0) {
    lines.push('', 'Not lazy:');
    for (const { layer, reason, message } of status.notLazy)
      lines.push(`  ${layer.slice(7, 19)} ${reason}: ${message}`);
  }
  return lines.join('\n');
}

function duration(ms: number): string {
  const seconds = Math.round(ms / 1000);
  if (seconds < 120) return `${seconds} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 120 ? `${minutes} min` : `${Math.round(minutes / 60)} h`;
}
