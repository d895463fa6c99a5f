/** Nodes answered for a span that several have. */
export const LOCATED_HOLDERS = 4;
/** A lease's holder may prolong it until it is this many times as old as a lease lasts: one that is so slow is no help. */
export const LEASE_RENEWALS = 4;
