import type { parseArgs, ParseArgsConfig } from 'node:util';

export type BenchOptions = NonNullable<ParseArgsConfig['options']>;

/** What a bench gets for its options: what stands on the command line, else their defaults. */
export type BenchValues<O extends BenchOptions> = ReturnType<typeof parseArgs<{ readonly options: O }>>['values'];

/** What the module of every bench exports. */
export interface Bench {
  /** One line for the list of benches. */
  readonly title: string;
  readonly options: BenchOptions;
  /**
   * @returns what goes into the JSON under `result`
   * @throws where a result is wrong: a time of wrong bytes is no result
   */
  run(values: BenchValues<BenchOptions>, signal: AbortSignal): Promise<unknown>;
}
