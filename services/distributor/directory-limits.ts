/** Nodes answered for a span that several have. */
export const LOCATED_HOLDERS = 4;
/** Reports of bad peers that are kept; the oldest go first. */
export const REPORTS_KEPT = 4_096;
/** A lease's holder may prolong it until it is this many times as old as a lease lasts: one that is so slow is no help. */
export const LEASE_RENEWALS = 4;
