/** Nodes answered for a span that several have. */
export const LOCATED_HOLDERS = 4;
/** Reports of bad peers that are kept; the oldest go first. */
export const REPORTS_KEPT = 4_096;
