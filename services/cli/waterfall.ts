/** A stage of a start; times in ms since its beginning. */
export interface Stage {
  readonly name: string;
  readonly startMs: number;
  readonly endMs: number;
}

const BAR = 40;

/** Stages as bars under each other on one time axis. */
export function waterfall(stages: readonly Stage[]): string {
  const total = Math.max(1, ...stages.map(({ endMs }) => endMs));
  const nameWidth = Math.max(...stages.map(({ name }) => name.length));
  return stages
    .map(({ name, startMs, endMs }) => {
      const from = Math.min(BAR - 1, Math.floor((startMs / total) * BAR));
      const to = Math.max(from + 1, Math.round((endMs / total) * BAR));
      const bar = `${' '.repeat(from)}${'#'.repeat(to - from)}`.padEnd(BAR);
      return `${name.padEnd(nameWidth)}  |${bar}|  ${String(Math.round(endMs - startMs)).padStart(6)} ms`;
    })
    .join('\n');
}
