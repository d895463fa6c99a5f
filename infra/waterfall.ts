export interface Waterfall {
  readonly name: string;
  readonly steps: readonly { readonly name: string; readonly fromMs: number; readonly toMs: number }[];
  /** From the registry. */
  readonly bytes: number;
}

const BAR_CHARS = 56;

/** Prints waterfalls one under the other on one time scale, and what share of the image's bytes each took. */
export function printWaterfalls(waterfalls: readonly Waterfall[], totalBytes: number): void {
  const longest = Math.max(...waterfalls.map(endOf));
  const width = Math.max(...waterfalls.flatMap(({ steps }) => steps.map((step) => step.name.length)));
  const first = waterfalls[0];
  for (const waterfall of waterfalls) {
    const times =
      first === undefined || waterfall === first
        ? ''
        : `, ${(endOf(first) / endOf(waterfall)).toFixed(1)} times faster`;
    console.log(`  ${waterfall.name}: ready after ${seconds(endOf(waterfall))}${times}`);
    for (const step of waterfall.steps) {
      const from = Math.round((step.fromMs / longest) * BAR_CHARS);
      const to = Math.max(from + 1, Math.round((step.toMs / longest) * BAR_CHARS));
      const bar = `${' '.repeat(from)}${'█'.repeat(to - from)}`.padEnd(BAR_CHARS);
      console.log(`    ${step.name.padEnd(width)}  ${bar}  ${seconds(step.toMs - step.fromMs)}`);
    }
    const share = ((100 * waterfall.bytes) / totalBytes).toFixed(0);
    console.log(
      `    ${'from the registry'.padEnd(width)}  ${mebibytes(waterfall.bytes)} of ${mebibytes(totalBytes)} MiB (${share} %)\n`,
    );
  }
}

function endOf({ steps }: Waterfall): number {
  return steps.at(-1)?.toMs ?? 0;
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(2)} s`;
}

function mebibytes(bytes: number): string {
  return (bytes / 1_048_576).toFixed(1);
}
