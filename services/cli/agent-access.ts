import { Option } from 'commander';
import { ControlClient } from '#shared/control/control-client.ts';

const DEFAULT_SOCKET = '/run/kindling/control.sock';

/** Where the agent of this machine listens: flag, then environment, then the agent's own default. */
export function controlSocketOption(): Option {
  return new Option('--control-socket <path>', "the agent's control socket")
    .env('KINDLING_CONTROL_SOCKET')
    .default(DEFAULT_SOCKET);
}

export interface AgentFlags {
  readonly controlSocket: string;
}

export function agentOf(flags: AgentFlags): ControlClient {
  return new ControlClient(flags.controlSocket);
}
