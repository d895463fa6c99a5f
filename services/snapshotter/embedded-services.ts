import type { Bus } from '#shared/bus/bus.ts';
import type { RegistryClient } from '#shared/registry/registry-client.ts';
import type { Registry } from '#shared/telemetry/metrics.ts';

/**
 * Other services in the agent's own process, on a node that works alone. Composed outside (`services/cli`), since no service
 * knows another.
 */
export interface EmbeddedServices {
  /**
   * The bus that they share with the agent. Called once this agent is the one that serves: a file holds its state, and one
   * process at a time may have it.
   */
  openBus(): Promise<Bus>;
  /** Runs them until `signal` aborts; rejects when one cannot start. */
  run(
    deps: {
      readonly bus: Bus;
      readonly registry: RegistryClient;
      readonly metrics: Registry;
    },
    signal: AbortSignal,
  ): Promise<void>;
}
