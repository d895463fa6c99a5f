/** A node says that another has sent wrong bytes. */
export interface Report {
  readonly suspect: string;
  /** Address of the node that says so: one that starts again and again is still one. */
  readonly reporter: string;
}

export const REPORT_LIMITS = {
  /** Different nodes that must say it: fewer could be one who wants to be rid of another. */
  reporters: 3,
  /** Whoever accuses more than this many is not believed at all: it is more likely wrong itself. */
  accused: 8,
  /** A report counts for so long. */
  keptMs: 10 * 60_000,
} as const;

/**
 * Who is believed to send wrong bytes. Suspects come last where nodes are chosen for others, and are never left out: what they
 * send is verified as everything is, and a false report must not cut off anybody. Pure.
 */
export function suspectsOf(reports: readonly Report[], limits: typeof REPORT_LIMITS = REPORT_LIMITS): Set<string> {
  const accused = new Map<string, Set<string>>();
  for (const { suspect, reporter } of reports) {
    accused.set(reporter, (accused.get(reporter) ?? new Set()).add(suspect));
  }
  const reporters = new Map<string, number>();
  for (const suspects of accused.values()) {
    if (suspects.size > limits.accused) continue;
    for (const suspect of suspects) reporters.set(suspect, (reporters.get(suspect) ?? 0) + 1);
  }
  return new Set(Array.from(reporters).flatMap(([suspect, count]) => (count >= limits.reporters ? [suspect] : [])));
}
