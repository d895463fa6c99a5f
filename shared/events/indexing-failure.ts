import { z } from 'zod';

/** A message of the bus, for whoever waits just now; what failed for good is among the dead letters as well. */
export const INDEXING_FAILED = 'kindling.indexing.failed';

const REASON_CHARACTERS = 2_000;

const indexingFailure = z.object({
  /** Source and id of the event that asked for it. */
  source: z.string().max(1024),
  id: z.string().max(1024),
  /** Of the error, such as `not-found`. */
  code: z.string().max(64),
  reason: z.string().max(REASON_CHARACTERS),
  /** What failed for now, and may go better by itself: a registry that is down. Not an image that does not exist. */
  passing: z.boolean(),
});
/** An indexer could not do what an event asks for. It may be tried again all the same. */
export type IndexingFailure = z.infer<typeof indexingFailure>;

export function encodeIndexingFailure(failure: IndexingFailure): Uint8Array {
  return Buffer.from(JSON.stringify({ ...failure, reason: failure.reason.slice(0, REASON_CHARACTERS) }));
}

/** @throws Error when it is none */
export function decodeIndexingFailure(payload: Uint8Array): IndexingFailure {
  return indexingFailure.parse(JSON.parse(Buffer.from(payload).toString()));
}
