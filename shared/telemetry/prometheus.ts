import { createRequire } from 'node:module';
import type * as prometheus from 'prom-client';

type Prometheus = typeof prometheus;
type DefaultMetric = (
  registry: prometheus.Registry,
  options: { readonly eventLoopMonitoringPrecision: number },
) => void;

const load = createRequire(import.meta.url);

/**
 * The parts of prom-client that are used here. Its index also loads a push gateway (with node:https), and its default metrics the whole
 * of OpenTelemetry's API, for exemplars: together 40 ms of each start and some 10 MiB in each process.
 */
export const Registry = load('prom-client/lib/registry.js') as Prometheus['Registry'];
export type Registry = prometheus.Registry;
export const Counter = load('prom-client/lib/counter.js') as Prometheus['Counter'];
export type Counter<T extends string = string> = prometheus.Counter<T>;
export const Gauge = load('prom-client/lib/gauge.js') as Prometheus['Gauge'];
export type Gauge<T extends string = string> = prometheus.Gauge<T>;
export const Histogram = load('prom-client/lib/histogram.js') as Prometheus['Histogram'];
export type Histogram<T extends string = string> = prometheus.Histogram<T>;

/** Of prom-client's default metrics all but `processCpuTotal`, which is the one that loads OpenTelemetry. */
const DEFAULT_METRICS = [
  'processStartTime',
  'osMemoryHeap',
  'processOpenFileDescriptors',
  'processMaxFileDescriptors',
  'eventLoopLag',
  'processResources',
  'processHandles',
  'processRequests',
  'heapSizeAndUsed',
  'heapSpacesSizeAndUsed',
  'version',
  'gc',
] as const;
const EVENT_LOOP_PRECISION_MS = 20;

/** The process's own metrics, under prom-client's names. */
export function collectProcessMetrics(registry: prometheus.Registry): void {
  for (const name of DEFAULT_METRICS) {
    const collect = load(`prom-client/lib/metrics/${name}.js`) as DefaultMetric;
    collect(registry, { eventLoopMonitoringPrecision: EVENT_LOOP_PRECISION_MS });
  }
  const cpu = (name: string, help: string, micros: (usage: NodeJS.CpuUsage) => number): void => {
    new Counter({
      name,
      help,
      registers: [registry],
      collect() {
        this.reset();
        this.inc(micros(process.cpuUsage()) / 1e6);
      },
    });
  };
  cpu('process_cpu_user_seconds_total', 'Total user CPU time spent in seconds.', ({ user }) => user);
  cpu('process_cpu_system_seconds_total', 'Total system CPU time spent in seconds.', ({ system }) => system);
  cpu(
    'process_cpu_seconds_total',
    'Total user and system CPU time spent in seconds.',
    ({ user, system }) => user + system,
  );
}
