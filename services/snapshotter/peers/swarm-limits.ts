const MiB = 1024 * 1024;

/** Bounds of one layer's sharing on one node. */
export const SWARM_LIMITS = {
  /**
   * Blob bytes of one registry read of a node that decides by itself: the first, doubled with each up to the last, so that one which
   * comes a moment before others does not take everything; and how many at a time.
   */
  firstRunBytes: MiB / 2,
  aloneRunBytes: 4 * MiB,
  aloneRuns: 4,
  /** Blob bytes of leases asked for at once; only a node that is alone gets more than one span. */
  leaseBytes: 4 * MiB,
  /** Delivered and not verified yet: beyond that nothing more is asked for, decoding is behind. */
  unverified: 96,
  /** A span that nobody is known to have is asked about after this long without any progress. */
  stallMs: 1_000,
  /** A neighbour that is there beats more often: one that has been silent for so long is cut off or stands still. */
  silentMs: 3_000,
  /** A span that was not where it was said to be is asked about again after this. */
  absentMs: 50,
  /** Spans that no reader waits for, of one question where they are. */
  located: 16,
  /** Reads at a time, beyond which none begins since its reader has lost patience. */
  impatient: 8,
  tickMs: 250,
  /** A tick that comes so late tells that this process has stood still. */
  stoodStillMs: 750,
  /** Follows nobody any more after so long without a want. */
  idleMs: 10_000,
  /** The same where nothing was wanted yet: a start that does not follow at once joins again. */
  expectedMs: 3_000,
} as const;
