import type { Bus } from '#shared/bus/bus.ts';
import type { ControlClient } from '#shared/control/control-client.ts';
import { viewOfDeadLetter, type DeadLetterView } from '#shared/events/dead-letter.ts';

export type Settling = 'retry' | 'drop';

/** Where dead letters are: the cluster, or the one process that takes events on a single node. */
export interface DeadLetterBox {
  /** The newest, newest last. */
  list(limit: number, signal: AbortSignal): Promise<readonly DeadLetterView[]>;
  /** Resolves to false where there is no such letter. */
  settle(id: string, how: Settling, signal: AbortSignal): Promise<boolean>;
}

export function boxOfCluster({ events }: Bus): DeadLetterBox {
  return {
    list: async (limit, signal) => (await events.deadLetters(limit, signal)).map(viewOfDeadLetter),
    settle: async (id, how, signal) =>
      await (how === 'retry' ? events.retryDead(id, signal) : events.dropDead(id, signal)),
  };
}

/** Only the agent may open the events of its node: it is asked. */
export function boxOfNode(agent: ControlClient): DeadLetterBox {
  return {
    list: async (limit, signal) => await agent.deadLetters(limit, signal),
    settle: async (id, how, signal) => await agent.settleDeadLetter({ id, how }, signal),
  };
}
